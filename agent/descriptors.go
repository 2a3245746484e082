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
	"github.com/huskvm/husk/linux/syscalls"
	"github.com/huskvm/husk/protocol"
)

// descriptor is the guest's counterpart of a descriptor of the host that a process is passed.
type descriptor struct {
	number byte
	kind   protocol.DescriptorKind
	ours   *os.File // its bytes are relayed to and from the host; nil for a listener
	theirs *os.File
	// network and address say where a listener listens.
	network, address string
}

// openDescriptors makes a counterpart for each kind of descriptor (protocol.DescriptorKind).
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

// pair makes a socket pair, which stands for a connected socket and for any other descriptor
// that is read and written.
func (d *descriptor) pair() error {
	var err error
	d.ours, d.theirs, err = syscalls.PolledSocketPair("passed")
	return err
}

// take makes fds[0] ours and fds[1] theirs. Only ours is non-blocking, so that a Close ends a
// pending Read.
func (d *descriptor) take(fds [2]int) error {
	err := unix.SetNonblock(fds[0], true)
	d.ours, d.theirs = os.NewFile(uintptr(fds[0]), "passed"), os.NewFile(uintptr(fds[1]), "passed")
	return os.NewSyscallError("fcntl", err)
}

// listen makes the listening socket in the guest's initial network namespace. The agent can
// connect to it there, whichever process of the container accepts.
func (d *descriptor) listen() error {
	if d.kind == protocol.DescriptorUnix {
		return d.listenAt("unix", "") // an empty name: the kernel chooses an abstract one
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
	// A service manager passes blocking sockets, and programs expect that.
	return os.NewSyscallError("fcntl", unix.SetNonblock(int(d.theirs.Fd()), false))
}

// addTo adds the descriptor's streams to all.
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

// endInput makes the process read end-of-file. It can still write to the socket.
func (d *descriptor) endInput() {
	if raw, err := d.ours.SyscallConn(); err == nil {
		// shutdown fails only if the other end is gone.
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
}

// connectTimeout bounds how long a connection waits for a place in the listener's queue.
// Without it a process that accepts nothing would hold streams for ever.
const connectTimeout = 20 * time.Second

// connect connects to the listener that the process was passed as descriptor number, and joins
// that connection with s, a connection which the host has accepted. It owns s unless it returns
// an error.
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
