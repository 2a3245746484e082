package stdio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// Descriptor is a descriptor that the cli's caller passes to the process, in addition to its
// stdio. The guest has a counterpart of it, and what is read and written is copied over
// streams.
type Descriptor struct {
	number byte
	kind   protocol.DescriptorKind
	file   *os.File
}

// Files gives access to passed descriptors by name (launch.Parent).
type Files interface{ File(name string) *os.File }

// FileName returns the name under which a descriptor is passed.
func FileName(number int) string { return fmt.Sprintf("fd-%d", number) }

// Passed returns the descriptors of these kinds, from number protocol.FirstDescriptor on.
func Passed(files Files, kinds []byte) []Descriptor {
	var all []Descriptor
	for i, kind := range kinds {
		n := protocol.FirstDescriptor + i
		all = append(all, Descriptor{byte(n), protocol.DescriptorKind(kind), files.File(FileName(n))})
	}
	return all
}

// KindOf returns what a descriptor is for the guest. It returns an error for a descriptor that
// cannot be passed.
func KindOf(f *os.File) (protocol.DescriptorKind, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return kindOfSocket(int(f.Fd()))
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFCHR:
	default:
		return 0, errors.New("only files, pipes, character devices and stream sockets can be passed into a virtual machine")
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return 0, os.NewSyscallError("fcntl", err)
	}
	switch flags & unix.O_ACCMODE {
	case unix.O_RDONLY:
		return protocol.DescriptorInput, nil
	case unix.O_WRONLY:
		return protocol.DescriptorOutput, nil
	}
	return protocol.DescriptorBoth, nil
}

func kindOfSocket(fd int) (protocol.DescriptorKind, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt", err)
	}
	if kind != unix.SOCK_STREAM {
		return 0, errors.New("a socket that is not of type stream cannot be passed into a virtual machine")
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt", err)
	}
	if listens == 0 {
		return protocol.DescriptorBoth, nil
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt", err)
	}
	switch family {
	case unix.AF_INET:
		return protocol.DescriptorTCP4, nil
	case unix.AF_INET6:
		return protocol.DescriptorTCP6, nil
	case unix.AF_UNIX:
		return protocol.DescriptorUnix, nil
	}
	return 0, fmt.Errorf("a listening socket of address family %d cannot be passed into a virtual machine", family)
}

// streamID identifies a stream to dial.
type streamID struct {
	kind   protocol.StreamKind
	number byte
}

// streamsOf returns the streams that the descriptors have from the beginning.
func streamsOf(passed []Descriptor) []streamID {
	var ids []streamID
	for _, d := range passed {
		if d.reads() {
			ids = append(ids, streamID{protocol.StreamStdin, d.number})
		}
		if d.writes() {
			ids = append(ids, streamID{protocol.StreamStdout, d.number})
		}
	}
	return ids
}

func (d Descriptor) reads() bool {
	return d.kind == protocol.DescriptorInput || d.kind == protocol.DescriptorBoth
}

func (d Descriptor) writes() bool {
	return d.kind == protocol.DescriptorOutput || d.kind == protocol.DescriptorBoth
}

// relayPassed copies between descriptors and the streams that streamsOf has returned.
func (r *Relay) relayPassed(dial Dial, passed []Descriptor, streams []Stream) {
	for _, d := range passed {
		if !d.reads() && !d.writes() {
			go acceptFor(d, dial)
			continue
		}
		if d.reads() {
			go r.input(streams[0], d.file)
			streams = streams[1:]
		}
		if d.writes() {
			r.outputs.Add(1)
			go r.passedOutput(d, r.carry(streamID{protocol.StreamStdout, d.number}, d.file, streams[0]))
			streams = streams[1:]
		}
	}
}

func (r *Relay) passedOutput(d Descriptor, o *output) {
	defer r.outputs.Done()
	if !o.copy() {
		return // another process goes on
	}
	// The reader of the other end learns now that this output has ended.
	if d.kind == protocol.DescriptorOutput {
		d.file.Close()
		return
	}
	if raw, err := d.file.SyscallConn(); err == nil {
		// ENOTSOCK: other files that go both ways have no end of their own.
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
}

// Bounds of the connections that wait at a listener: how many, and how long each waits for the
// guest.
const (
	maxConnections = 512
	connectTimeout = 30 * time.Second
)

// acceptFor joins each connection to a listening socket with one in the guest, until the
// process ends.
func acceptFor(d Descriptor, dial Dial) {
	l, err := net.FileListener(d.file)
	d.file.Close()
	if err != nil {
		return // the descriptor was checked, so it fails only if this process has no free descriptors
	}
	places := make(chan struct{}, maxConnections)
	for {
		places <- struct{}{}
		conn, err := l.Accept()
		if err != nil {
			<-places
			if !acceptAgain(err) {
				return
			}
			continue
		}
		go func() {
			defer func() { <-places }()
			defer conn.Close()
			host, ok := conn.(Stream)
			if !ok {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
			guest, err := dial(ctx, protocol.StreamConnect, d.number)
			cancel()
			if err != nil {
				return // nobody listens in the guest any more, which the closed connection shows
			}
			defer guest.Close()
			protocol.Join(host, guest)
		}()
	}
}

// acceptAgain says whether an error concerns one connection only.
func acceptAgain(err error) bool {
	return errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EINTR)
}
