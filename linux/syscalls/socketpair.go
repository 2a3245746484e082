package syscalls

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// SocketPair returns two connected unix stream sockets with this name. Both are blocking and
// close-on-exec: a child gets one by os/exec's ExtraFiles, and may execute programs that
// expect blocking descriptors.
func SocketPair(name string) (ours, theirs *os.File, err error) {
	return socketPair(name, false)
}

// PolledSocketPair is SocketPair with a non-blocking ours, which Go's poller knows: Close and
// deadlines end a pending Read of it.
func PolledSocketPair(name string) (ours, theirs *os.File, err error) {
	return socketPair(name, true)
}

func socketPair(name string, polled bool) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if polled {
		// os.NewFile registers only a descriptor that is non-blocking by then.
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fds[0], true))
	}
	ours, theirs = os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	if err != nil {
		return nil, nil, errors.Join(err, ours.Close(), theirs.Close())
	}
	return ours, theirs, nil
}

// SocketPairConn is SocketPair with ours as a connection.
func SocketPairConn(name string) (ours *net.UnixConn, theirs *os.File, err error) {
	file, theirs, err := SocketPair(name)
	if err != nil {
		return nil, nil, err
	}
	if ours, err = unixConn(file); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// ConnPair returns two connections with each other. Unlike those of net.Pipe they have
// buffers, as a virtio-serial port has.
func ConnPair(name string) (a, b *net.UnixConn, err error) {
	a, file, err := SocketPairConn(name)
	if err != nil {
		return nil, nil, err
	}
	if b, err = unixConn(file); err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	return a, b, nil
}

// unixConn turns a file that is a unix socket into a connection. It closes the file.
func unixConn(f *os.File) (*net.UnixConn, error) {
	conn, err := net.FileConn(f) // a duplicate
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
