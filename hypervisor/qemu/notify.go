package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The structures of seccomp's user notification, as linux/seccomp.h has them.
type (
	notification struct {
		id   uint64
		tid  uint32
		_    uint32 // flags
		nr   int32
		_    uint32 // architecture
		_    uint64 // instruction pointer
		args [6]uint64
	}
	notificationAnswer struct {
		id    uint64
		value int64
		errno int32
		flags uint32
	}
)

// listener answers for system calls of the processes under its filter.
type listener struct{ file *os.File }

// listen puts the calling thread, and what it forks from now on, under a filter
// that lets every system call pass but those it returns SECCOMP_RET_USER_NOTIF for.
// The thread must never run anything else again: it stays under the filter.
func listen(filter []bpf.Instruction) (*listener, error) {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return nil, fmt.Errorf("assemble filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	fd, err := seccomp(&program)
	if errors.Is(err, unix.EACCES) {
		// Without CAP_SYS_ADMIN the kernel wants a promise first. QEMU gains nothing by
		// execve anyway.
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("set no_new_privs: %w", err)
		}
		fd, err = seccomp(&program)
	}
	if err != nil {
		return nil, fmt.Errorf("install filter: %w", err)
	}
	// Non-blocking only makes the runtime poll it: the read itself knows no such thing.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("poll system calls: %w", err)
	}
	return &listener{os.NewFile(uintptr(fd), "seccomp")}, nil
}

func seccomp(program *unix.SockFprog) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(program)))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// receive waits for the next system call. io.EOF: nobody is left under the filter.
func (l *listener) receive() (notification, error) {
	var n notification
	conn, err := l.file.SyscallConn()
	if err != nil {
		return n, err
	}
	var failure error
	err = conn.Read(func(fd uintptr) bool {
		// Receiving blocks, whatever the descriptor's mode, if there is nothing.
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, failure = unix.Poll(poll, 0); failure != nil {
			return !errors.Is(failure, unix.EINTR)
		}
		switch {
		case poll[0].Revents&unix.POLLIN != 0:
			n = notification{}
			failure = control(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
			return failure == nil || !errors.Is(failure, unix.ENOENT) && !errors.Is(failure, unix.EINTR)
		case poll[0].Revents != 0:
			failure = io.EOF
			return true
		}
		return false
	})
	return n, errors.Join(err, failure)
}

// proceed lets the kernel do what was called for.
func (l *listener) proceed(n notification) {
	l.send(notificationAnswer{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

// answer has the call return value, or fail with errno if that is not 0.
func (l *listener) answer(n notification, value int, errno syscall.Errno) {
	l.send(notificationAnswer{id: n.id, value: int64(value), errno: -int32(errno)})
}

func (l *listener) send(a notificationAnswer) {
	conn, err := l.file.SyscallConn()
	if err != nil {
		return // closed: nobody is left
	}
	//nolint:errcheck // ENOENT: a signal has taken the call back
	conn.Control(func(fd uintptr) { control(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)) })
}

func control(fd uintptr, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func (l *listener) close() { l.file.Close() }
