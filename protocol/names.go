package protocol

import (
	"encoding/binary"
	"fmt"
	"io"
)

// NameMessage is one DNS message (RFC 1035 section 4) on a stream of kind StreamNames: a query
// on its way to the host, or its answer on the way back.
type NameMessage struct {
	ID      uint32 // chosen by the agent; an answer has the id of its query
	TCP     bool   // ask by TCP, not by UDP
	Message []byte // 1 to 65535 bytes, without the length that precedes a message on TCP
}

// nameHeaderSize is the size of id (4 bytes, big-endian), protocol (1) and length (2,
// big-endian).
const nameHeaderSize = 7

// Write sends the message in one write. Only one goroutine may write to w at a time.
func (m NameMessage) Write(w io.Writer) error {
	if len(m.Message) == 0 || len(m.Message) > 0xffff {
		return fmt.Errorf("write name message: %d bytes", len(m.Message))
	}
	b := make([]byte, nameHeaderSize, nameHeaderSize+len(m.Message))
	binary.BigEndian.PutUint32(b, m.ID)
	if m.TCP {
		b[4] = 1
	}
	binary.BigEndian.PutUint16(b[5:], uint16(len(m.Message)))
	if _, err := w.Write(append(b, m.Message...)); err != nil {
		return fmt.Errorf("write name message: %w", err)
	}
	return nil
}

// ReadNameMessage reads exactly one message. It returns io.EOF if the sender has closed the
// stream before another message.
func ReadNameMessage(r io.Reader) (NameMessage, error) {
	var h [nameHeaderSize]byte
	if _, err := io.ReadFull(r, h[:1]); err != nil {
		return NameMessage{}, err //nolint:wrapcheck // callers compare with io.EOF
	}
	if _, err := io.ReadFull(r, h[1:]); err != nil {
		return NameMessage{}, fmt.Errorf("read name message: %w", noEOF(err))
	}
	n := binary.BigEndian.Uint16(h[5:])
	if n == 0 || h[4] > 1 {
		return NameMessage{}, fmt.Errorf("read name message: header %x is not valid", h)
	}
	m := NameMessage{ID: binary.BigEndian.Uint32(h[:]), TCP: h[4] == 1, Message: make([]byte, n)}
	if _, err := io.ReadFull(r, m.Message); err != nil {
		return NameMessage{}, fmt.Errorf("read name message: %w", noEOF(err))
	}
	return m, nil
}
