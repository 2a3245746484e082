package nsfork

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Call is a system call for the child to make. A failure of one is Start's.
type Call struct {
	Name string // of what it does, for the error
	Nr   uintptr
	Args [6]uintptr
	keep []any // what Args point at
}

// NewCall returns a call of the system call nr. An argument is an int, a string,
// which the kernel gets ended by a zero byte, or an unsafe.Pointer to what nobody
// changes before Start returns.
func NewCall(name string, nr int, args ...any) (Call, error) {
	c := Call{Name: name, Nr: uintptr(nr)}
	for i, arg := range args {
		switch arg := arg.(type) {
		case int:
			c.Args[i] = uintptr(arg)
		case unsafe.Pointer:
			c.Args[i], c.keep = uintptr(arg), append(c.keep, arg)
		case string:
			text, err := unix.BytePtrFromString(arg)
			if err != nil {
				return c, fmt.Errorf("%s: %w", name, err)
			}
			c.Args[i], c.keep = uintptr(unsafe.Pointer(text)), append(c.keep, text)
		default:
			return c, fmt.Errorf("%s: argument %d is a %T", name, i, arg)
		}
	}
	return c, nil
}

// Filter is a seccomp program. The child is under it when it makes the calls
// execve, and before that sendmsg if Listen is set, and, should execve fail, write
// and exit_group. It needs no_new_privs, for which there is a Call, or CAP_SYS_ADMIN.
type Filter struct {
	Program []unix.SockFilter // 1 to 4096 instructions
	// Listen is given, before the child executes its program, the listener that
	// answers SECCOMP_RET_USER_NOTIF, and owns it. It must not wait for the child.
	// Nil: nothing is answered.
	Listen func(listener *os.File)
}

// ErrNoListener is Start's where the kernel grants no listener: another listens
// already, of a program that this one runs in.
var ErrNoListener = errors.New("no listener for system calls is to be had")

// filterJob is a Filter in the form the child needs it in.
type filterJob struct {
	program unix.SockFprog
	flags   uintptr
	socket  int // where the child sends its listener
	message syscall.Msghdr
	rights  rights
	byteOne [1]byte
	vector  syscall.Iovec
	near    int
	listen  func(*os.File)
}

// rights is a control message that passes one descriptor.
type rights struct {
	header syscall.Cmsghdr
	fd     int32
	_      int32
}

func (f *filterJob) prepare(filter *Filter) (closeAll func(), err error) {
	if filter == nil {
		return func() {}, nil
	}
	f.program = unix.SockFprog{Len: uint16(len(filter.Program)), Filter: &filter.Program[0]}
	if filter.Listen == nil {
		return func() {}, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	// Where a descriptor of the child's own goes would close it.
	far, err := unix.FcntlInt(uintptr(fds[1]), unix.F_DUPFD_CLOEXEC, firstSpare)
	_ = unix.Close(fds[1])
	if err != nil {
		_ = unix.Close(fds[0])
		return nil, os.NewSyscallError("fcntl", err)
	}
	f.near, f.socket, f.listen = fds[0], far, filter.Listen
	f.flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	f.rights.header = syscall.Cmsghdr{Level: unix.SOL_SOCKET, Type: unix.SCM_RIGHTS}
	f.rights.header.SetLen(syscall.CmsgLen(4))
	f.vector = syscall.Iovec{Base: &f.byteOne[0], Len: 1}
	f.message = syscall.Msghdr{Iov: &f.vector, Iovlen: 1, Control: (*byte)(unsafe.Pointer(&f.rights))}
	f.message.SetControllen(syscall.CmsgSpace(4))
	return func() {
		_ = unix.Close(f.near)
		if f.socket >= 0 {
			_ = unix.Close(f.socket)
		}
	}, nil
}

// install is run in the child: see fork.
//
//go:norace
//go:nosplit
func (f *filterJob) install() syscall.Errno {
	fd, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, f.flags, uintptr(unsafe.Pointer(&f.program)))
	if errno != 0 || f.flags == 0 {
		return errno
	}
	f.rights.fd = int32(fd)
	_, _, errno = syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(f.socket), uintptr(unsafe.Pointer(&f.message)), unix.MSG_NOSIGNAL)
	return errno
}

// receive hands on the listener. Without an error there may be none: the child has
// failed, and says so elsewhere.
func (f *filterJob) receive() error {
	if f.listen == nil {
		return nil
	}
	_ = unix.Close(f.socket) // the child's: were it open here, the child's end would not show
	f.socket = -1
	buf := make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	for {
		var err error
		n, oobn, _, _, err = unix.Recvmsg(f.near, make([]byte, 1), buf, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvmsg", err)
		}
		break
	}
	if n == 0 {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(buf[:oobn])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("receive listener: %d messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("receive listener: %d descriptors: %w", len(fds), err)
	}
	f.listen(os.NewFile(uintptr(fds[0]), "seccomp"))
	return nil
}
