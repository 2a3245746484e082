package protocol

import (
	"encoding/binary"
	"fmt"
	"io"
)

// MaxNotification is the largest datagram of sd_notify(3) that is passed on, in
// bytes: what systemd itself takes.
const MaxNotification = 4096

// WriteNotification sends what a process has told its service manager: two bytes of
// length, big-endian, and the text.
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

// ReadNotification reads one notification. io.EOF means that the sender is done.
func ReadNotification(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return nil, err //nolint:wrapcheck // io.EOF is an answer
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
