package protocol

import (
	"encoding/binary"
	"fmt"
	"io"
)

// MaxNotification is the size of the largest message of sd_notify(3) that is passed on, in
// bytes. systemd has the same limit.
const MaxNotification = 4096

// WriteNotification sends a message of a process to its service manager: its length (2 bytes,
// big-endian) and its text.
func WriteNotification(w io.Writer, text []byte) error {
	if len(text) == 0 || len(text) > MaxNotification {
		return fmt.Errorf("write notification: %d bytes", len(text))
	}
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(text)), uint16(len(text)))
	if _, err := w.Write(append(b, text...)); err != nil {
		return fmt.Errorf("write notification: %w", err)
	}
	return nil
}

// ReadNotification reads exactly one message. It returns io.EOF if the sender has closed the
// stream before another message.
func ReadNotification(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return nil, err //nolint:wrapcheck // callers compare with io.EOF
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return nil, fmt.Errorf("read notification: %w", noEOF(err))
	}
	n := binary.BigEndian.Uint16(head[:])
	if n == 0 || n > MaxNotification {
		return nil, fmt.Errorf("read notification: %d bytes", n)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, fmt.Errorf("read notification: %w", noEOF(err))
	}
	return text, nil
}
