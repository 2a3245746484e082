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
	// StreamNames carries NameMessages, the container's questions for the resolver
	// at ResolverAddress. Its ProcessID is empty.
	StreamNames StreamKind = 'n'
	// StreamConnect is one connection to the listening socket with the header's
	// number. The process may have any number of them.
	StreamConnect StreamKind = 'l'
	// StreamNotify carries Notifications to the host. Its ProcessID is empty.
	StreamNotify StreamKind = 's'
	// StreamRest never goes to a guest: on the supervisor's stream socket it stands
	// before two descriptors, a stream and where its rest is to be written to.
	StreamRest StreamKind = 'r'
)

// DescriptorKind says what a descriptor of the host's, passed to a process, is for
// the guest.
type DescriptorKind byte

// The kinds. Input and Both have a StreamStdin, Output and Both a StreamStdout with
// their number; a listener has a StreamConnect for each connection.
const (
	DescriptorInput  DescriptorKind = 'i' // the process reads
	DescriptorOutput DescriptorKind = 'o' // the process writes
	DescriptorBoth   DescriptorKind = 'b' // a stream socket
	DescriptorTCP4   DescriptorKind = '4' // listens
	DescriptorTCP6   DescriptorKind = '6' // listens
	DescriptorUnix   DescriptorKind = 'u' // listens
)

// FirstDescriptor is the number of the first descriptor that is passed; the others
// follow.
const FirstDescriptor = 3

// MaxDescriptors bounds how many one process is passed.
const MaxDescriptors = 32

// ResolverAddress is where engines have their resolver listen inside a network
// namespace of the host (Docker's embedded DNS).
const ResolverAddress = "127.0.0.11"

// maxIDLen bounds the ids in a header: longer ones are refused unread.
const maxIDLen = 255

// StreamHeader opens a stream: one kind byte, one byte with the number, then
// container id and process id, each as one length byte and that many bytes. Both ids
// are empty for StreamControl. The agent answers it with a stream ack. A process's
// streams are opened after Create or Exec has returned, each kind and number once, but
// for StreamConnect.
type StreamHeader struct {
	Kind        StreamKind
	ContainerID string
	ProcessID   string
	// Number is that of the process's descriptor, 0 for what is its stdio or none.
	Number byte
}

// Write sends the header in one write.
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

// ReadStreamHeader reads a header and not one byte more. The caller sets the deadline.
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

// WriteStreamAck answers a header: nil accepts the stream, an error refuses it
// and its text, cut to 255 bytes, goes to the host. Until the answer the host
// sends nothing more, so that it knows a stream is attached before it waits for
// the process to end.
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

// ReadStreamAck reads the answer to a header and not one byte more. The text of
// a refusal is the guest's and is quoted in the error. The caller sets the deadline.
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

// noEOF keeps a header cut short from passing for a stream that ended properly.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
