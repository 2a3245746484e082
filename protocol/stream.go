package protocol

import (
	"errors"
	"fmt"
	"io"
)

// StreamKind says what a stream carries. The host opens every stream and sends its header.
type StreamKind byte

// The kinds. Stdin flows to the guest, Stdout and Stderr to the host. The sender closes its
// direction after the last byte, which is the end-of-file. A process with a terminal has only
// Stdin and Stdout.
const (
	StreamControl StreamKind = 'c' // ttrpc with the Agent service
	StreamStdin   StreamKind = 'i'
	StreamStdout  StreamKind = 'o'
	StreamStderr  StreamKind = 'e'
	// StreamNames carries NameMessages: the container's questions for the resolver at
	// ResolverAddress. Its ProcessID is empty.
	StreamNames StreamKind = 'n'
	// StreamConnect is one connection to the listening socket that was passed as descriptor
	// Number. A process may have any number of them.
	StreamConnect StreamKind = 'l'
	// StreamNotify carries messages of sd_notify(3) to the host. Its ProcessID is empty.
	StreamNotify StreamKind = 's'
	// StreamRest never goes to a guest. On the supervisor's stream socket it precedes two
	// descriptors: a stream, and the file to which the rest of that output is written.
	StreamRest StreamKind = 'r'
)

// DescriptorKind says what a passed descriptor of the host is for the process in the guest.
type DescriptorKind byte

// The kinds. Input and Both have a StreamStdin with the descriptor's number, Output and Both a
// StreamStdout. A listener has a StreamConnect for each connection.
const (
	DescriptorInput  DescriptorKind = 'i' // the process reads from it
	DescriptorOutput DescriptorKind = 'o' // the process writes to it
	DescriptorBoth   DescriptorKind = 'b' // a stream socket
	DescriptorTCP4   DescriptorKind = '4' // a listening socket
	DescriptorTCP6   DescriptorKind = '6' // a listening socket
	DescriptorUnix   DescriptorKind = 'u' // a listening socket
)

// FirstDescriptor is the number of the first passed descriptor. The others follow.
const FirstDescriptor = 3

// MaxDescriptors bounds the passed descriptors of one process.
const MaxDescriptors = 32

// ResolverAddress is the address at which engines run a resolver inside a network namespace of
// the host, such as Docker's embedded DNS.
const ResolverAddress = "127.0.0.11"

// maxIDLen bounds the ids in a header, in bytes. The length field has one byte.
const maxIDLen = 255

// StreamHeader is sent by the host when it opens a stream: one byte for the kind, one for the
// number, then the container's id and the process's id, each as one length byte and its bytes.
// Both ids are empty for StreamControl. The agent answers with a stream ack. The streams of a
// process are opened after Create or Exec has returned. Except for StreamConnect each kind and
// number is opened once.
type StreamHeader struct {
	Kind        StreamKind
	ContainerID string
	ProcessID   string
	// Number is the number of a passed descriptor, and 0 for all other streams.
	Number byte
}

// Write sends the header in one write. It returns an error if an id is longer than 255 bytes.
func (h StreamHeader) Write(w io.Writer) error {
	if len(h.ContainerID) > maxIDLen || len(h.ProcessID) > maxIDLen {
		return fmt.Errorf("write stream header: id longer than %d bytes", maxIDLen)
	}
	b := []byte{byte(h.Kind), h.Number, byte(len(h.ContainerID))}
	b = append(b, h.ContainerID...)
	b = append(b, byte(len(h.ProcessID)))
	b = append(b, h.ProcessID...)
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("write stream header: %w", err)
	}
	return nil
}

// ReadStreamHeader reads exactly one header. The caller sets the deadline.
func ReadStreamHeader(r io.Reader) (StreamHeader, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return StreamHeader{}, fmt.Errorf("read stream header: %w", err)
	}
	h := StreamHeader{Kind: StreamKind(head[0]), Number: head[1]}
	switch h.Kind {
	case StreamControl, StreamStdin, StreamStdout, StreamStderr, StreamNames, StreamConnect, StreamNotify, StreamRest:
	default:
		return StreamHeader{}, fmt.Errorf("read stream header: unknown kind %#x", head[0])
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

// WriteStreamAck answers a header. nil accepts the stream. An error refuses it, and the host
// gets the first 255 bytes of its text. The host sends nothing before the answer, so it knows
// that the stream is attached before it waits for the process.
func WriteStreamAck(w io.Writer, refusal error) error {
	b := []byte{0}
	if refusal != nil {
		text := refusal.Error()
		text = text[:min(len(text), maxIDLen)]
		if text == "" {
			text = "refused"
		}
		b[0] = byte(len(text))
		b = append(b, text...)
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("write stream answer: %w", err)
	}
	return nil
}

// ReadStreamAck reads exactly one answer to a header. If the stream was refused, the error
// quotes the guest's text. The caller sets the deadline.
func ReadStreamAck(r io.Reader) error {
	text, err := readLengthPrefixed(r)
	if err != nil {
		return fmt.Errorf("read stream answer: %w", noEOF(err))
	}
	if text != "" {
		return fmt.Errorf("agent refused it: %q", text)
	}
	return nil
}

func readID(r io.Reader) (string, error) {
	id, err := readLengthPrefixed(r)
	if err != nil {
		return "", fmt.Errorf("read stream header: %w", noEOF(err))
	}
	return id, nil
}

// readLengthPrefixed reads one length byte and that many bytes.
func readLengthPrefixed(r io.Reader) (string, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return "", err
	}
	b := make([]byte, n[0])
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	return string(b), nil
}

// noEOF turns io.EOF in the middle of a header into io.ErrUnexpectedEOF, so that it does not
// look like the proper end of a stream.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
