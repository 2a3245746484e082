package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/libcontainer"
	"github.com/huskvm/husk/protocol"
)

// descriptor stands for one of the host's that a process is passed.
type descriptor struct {
	number byte
	kind   protocol.DescriptorKind
	ours   *os.File // what is carried to and from the host; nil for a listener
	theirs *os.File
	// network and address are where a listener listens.
	network, address string
}

// openDescriptors makes the guest's counterparts of the host's descriptors.
func openDescriptors(kinds []byte) (all []*descriptor, err error) {
	if len(kinds) > protocol.MaxDescriptors {
		return nil, status.Errorf(codes.InvalidArgument, "%d descriptors are more than %d", len(kinds), protocol.MaxDescriptors)
	}
	defer func() {
		if err != nil {
			closeTheirs(all)
			closeOurs(all)
		}
	}()
	for i, kind := range kinds {
		d := &descriptor{number: byte(protocol.FirstDescriptor + i), kind: protocol.DescriptorKind(kind)}
		if err := d.open(); err != nil {
			return all, fmt.Errorf("pass descriptor %d: %w", d.number, err)
		}
		all = append(all, d)
	}
	return all, nil
}

func (d *descriptor) open() error {
	switch d.kind {
	case protocol.DescriptorInput, protocol.DescriptorOutput:
		return d.pipe()
	case protocol.DescriptorBoth:
		return d.pair()
	case protocol.DescriptorTCP4, protocol.DescriptorTCP6, protocol.DescriptorUnix:
		return d.listen()
	}
	return fmt.Errorf("unknown kind %#x", byte(d.kind))
}

func (d *descriptor) pipe() error {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	if d.kind == protocol.DescriptorInput {
		fds[0], fds[1] = fds[1], fds[0]
	}
	return d.take(fds)
}

// pair takes the place of a socket, or of whatever else goes both ways.
func (d *descriptor) pair() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	return d.take(fds)
}

// take keeps the first as ours. It alone is not blocking, so that a Close ends a Read.
func (d *descriptor) take(fds [2]int) error {
	err := unix.SetNonblock(fds[0], true)
	d.ours, d.theirs = os.NewFile(uintptr(fds[0]), "passed"), os.NewFile(uintptr(fds[1]), "passed")
	return os.NewSyscallError("fcntl", err)
}

// listen makes the listening socket in the guest's own network namespace, from which
// this process can connect to it wherever it has been passed on to.
func (d *descriptor) listen() error {
	if d.kind == protocol.DescriptorUnix {
		return d.listenAt("unix", "") // a name of the kernel's choice, of no directory
	}
	if err := libcontainer.LoopbackUp(); err != nil {
		return err
	}
	if d.kind == protocol.DescriptorTCP6 {
		if err := d.listenAt("tcp6", "[::1]:0"); err == nil {
			return nil
		} // a kernel without IPv6
	}
	return d.listenAt("tcp4", "127.0.0.1:0")
}

func (d *descriptor) listenAt(network, address string) error {
	l, err := net.Listen(network, address) //nolint:noctx // it looks nothing up
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer func() { _ = l.Close() }()
	filer, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return fmt.Errorf("listen: a %T has no file", l)
	}
	d.network, d.address = network, l.Addr().String()
	if d.theirs, err = filer.File(); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	// Programs expect the blocking one that a service manager would have given them.
	return os.NewSyscallError("fcntl", unix.SetNonblock(int(d.theirs.Fd()), false))
}

// addTo adds the streams a descriptor has.
func (d *descriptor) addTo(all map[streamID]*end) {
	in, out := streamID{protocol.StreamStdin, d.number}, streamID{protocol.StreamStdout, d.number}
	switch d.kind {
	case protocol.DescriptorInput:
		all[in] = &end{File: d.ours}
	case protocol.DescriptorOutput:
		all[out] = &end{File: d.ours}
	case protocol.DescriptorBoth:
		e := &end{File: d.ours, both: true, endInput: d.endInput}
		all[in], all[out] = e, e
	}
}

// endInput is the end-of-file of a socket that is still written to.
func (d *descriptor) endInput() {
	if raw, err := d.ours.SyscallConn(); err == nil {
		// An error is that the other end has gone.
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
}

// connectTimeout is how long a connection may wait for a place in the listener's
// queue: a process that accepts none must not hold streams for ever.
const connectTimeout = 20 * time.Second

// connect joins a connection that the host has accepted with one to the listener the
// process was passed. It owns s unless it returns an error.
func (p *process) connect(number byte, s stream) error {
	i := int(number) - protocol.FirstDescriptor
	if i < 0 || i >= len(p.passed) || p.passed[i].address == "" {
		return status.Errorf(codes.NotFound, "descriptor %d is no listener", number)
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, p.passed[i].network, p.passed[i].address)
	if err != nil {
		return fmt.Errorf("connect to descriptor %d: %w", number, err)
	}
	guest, ok := conn.(stream)
	if !ok {
		return errors.Join(fmt.Errorf("connect to descriptor %d: %T has no half-close", number, conn), conn.Close())
	}
	if err := protocol.WriteStreamAck(s, nil); err != nil {
		return errors.Join(err, conn.Close())
	}
	go func() {
		protocol.Join(s, guest)
		_ = s.Close()
		_ = guest.Close()
	}()
	return nil
}

func theirs(all []*descriptor) []*os.File {
	var files []*os.File
	for _, d := range all {
		files = append(files, d.theirs)
	}
	return files
}

func closeTheirs(all []*descriptor) {
	for _, d := range all {
		_ = d.theirs.Close() // also of nil
	}
}

func closeOurs(all []*descriptor) {
	for _, d := range all {
		_ = d.ours.Close() // also of nil
	}
}
