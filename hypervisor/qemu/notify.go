package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The structures of seccomp's user notification, as in linux/seccomp.h.
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
	notificationFile struct {
		id       uint64
		_        uint32 // flags
		source   uint32
		_        uint32 // the number that the descriptor should get
		newFlags uint32
	}
)

// listener receives and answers system calls of the processes under its filter.
type listener struct{ file *os.File }

// newListener returns a listener for the descriptor that the kernel gave for a filter.
func newListener(granted *os.File) (*listener, error) {
	fd, err := unix.FcntlInt(granted.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if cerr := granted.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	// Non-blocking mode makes Go's runtime poll the descriptor. The kernel's ioctl does not
	// look at the mode.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("poll system calls: %w", err)
	}
	return &listener{os.NewFile(uintptr(fd), "seccomp")}, nil
}

// receive waits for the next system call. It returns io.EOF when no process is left under the
// filter.
func (l *listener) receive() (notification, error) {
	var n notification
	conn, err := l.file.SyscallConn()
	if err != nil {
		return n, err
	}
	var failure error
	err = conn.Read(func(fd uintptr) bool {
		for {
			// The ioctl blocks if there is no call to receive, even in non-blocking mode.
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, failure = unix.Poll(poll, 0); failure == nil {
				switch events := poll[0].Revents; {
				case events&unix.POLLIN != 0:
					n = notification{}
					failure = control(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
				case events&unix.POLLHUP != 0:
					failure = io.EOF
				case events&unix.POLLERR != 0:
					failure = unix.EINTR // a signal has interrupted the kernel's look
				default:
					return false
				}
			}
			// Look again at once: the poller tells of a call only once. ENOENT: the process that
			// made the call has ended.
			if !errors.Is(failure, unix.EINTR) && !errors.Is(failure, unix.ENOENT) {
				return true
			}
		}
	})
	return n, errors.Join(err, failure)
}

// proceed lets the kernel execute the call.
func (l *listener) proceed(n notification) {
	l.send(notificationAnswer{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

// answer makes the call return value or, if errno is not 0, fail with errno.
func (l *listener) answer(n notification, value int, errno syscall.Errno) {
	l.send(notificationAnswer{id: n.id, value: int64(value), errno: -int32(errno)})
}

// give makes the call return a new descriptor of file, with these flags. After an error the
// call has not returned yet.
func (l *listener) give(n notification, file *os.File, flags uint32) error {
	add := notificationFile{id: n.id, source: uint32(file.Fd()), newFlags: flags}
	conn, err := l.file.SyscallConn()
	if err != nil {
		return err
	}
	var number uintptr
	var errno syscall.Errno
	err = conn.Control(func(fd uintptr) {
		number, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.SECCOMP_IOCTL_NOTIF_ADDFD, uintptr(unsafe.Pointer(&add)))
	})
	runtime.KeepAlive(file)
	if err == nil && errno != 0 {
		err = os.NewSyscallError("ioctl SECCOMP_IOCTL_NOTIF_ADDFD", errno)
	}
	if err != nil {
		return err
	}
	l.answer(n, int(number), 0)
	return nil
}

func (l *listener) send(a notificationAnswer) {
	conn, err := l.file.SyscallConn()
	if err != nil {
		return // closed: no process is left
	}
	//nolint:errcheck // ENOENT: a signal has interrupted the call
	conn.Control(func(fd uintptr) { control(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)) })
}

func control(fd uintptr, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func (l *listener) close() { l.file.Close() }
