package protocol

import (
	"errors"
	"fmt"
	"io"
)

// StreamKind says what a stream between host and guest carries. The host opens
// every stream and sends the header; the agent never opens one.
type StreamKind byte

// The kinds. Stdin flows to the guest, Stdout and Stderr from it; the sender's
// half-close is the end-of-file and arrives after the last byte. With a
// terminal there are Stdin and Stdout only.
const (
	StreamControl StreamKind = 'c' // ttrpc, the Agent service
	StreamStdin   StreamKind = 'i'
	StreamStdout  StreamKind = 'o'
	StreamStderr  StreamKind = 'e'
)

// maxIDLen bounds the ids in a header: longer ones are refused unread.
const maxIDLen = 255

// StreamHeader opens a stream: one kind byte, then container id and process id,
// each as one length byte and that many bytes. Both ids are empty for
// StreamControl.
type StreamHeader struct {
	Kind        StreamKind
	ContainerID string
	ProcessID   string
}

// Write sends the header in one write.
func (h StreamHeader) Write(w io.Writer) error {
	if len(h.ContainerID) > maxIDLen || len(h.ProcessID) > maxIDLen {
		return fmt.Errorf("write stream header: id longer than %d bytes", maxIDLen)
	}
	b := []byte{byte(h.Kind), byte(len(h.ContainerID))}
	b = append(b, h.ContainerID...)
	b = append(b, byte(len(h.ProcessID)))
	b = append(b, h.ProcessID...)
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("write stream header: %w", err)
	}
	return nil
}

// ReadStreamHeader reads a header and not one byte more. The caller sets the deadline.
func ReadStreamHeader(r io.Reader) (StreamHeader, error) {
	var kind [1]byte
	if _, err := io.ReadFull(r, kind[:]); err != nil {
		return StreamHeader{}, fmt.Errorf("read stream header: %w", err)
	}
	h := StreamHeader{Kind: StreamKind(kind[0])}
	switch h.Kind {
	case StreamControl, StreamStdin, StreamStdout, StreamStderr:
	default:
		return StreamHeader{}, fmt.Errorf("read stream header: unknown kind %#x", kind[0])
	}
	var err error
	if h.ContainerID, err = readID(r); err != nil {
		return StreamHeader{}, err
	}
	if h.ProcessID, err = readID(r); err != nil {
		return StreamHeader{}, err
	}
	return h, nil
}

func readID(r io.Reader) (string, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return "", fmt.Errorf("read stream header: %w", noEOF(err))
	}
	b := make([]byte, n[0])
	if _, err := io.ReadFull(r, b); err != nil {
		return "", fmt.Errorf("read stream header: %w", noEOF(err))
	}
	return string(b), nil
}

// noEOF keeps a header cut short from passing for a stream that ended properly.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
