package nsfork

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// Call is a system call that the child makes before it executes its program. If the call fails,
// Start returns its error.
type Call struct {
	Name string // for the error: what the call does
	Nr   uintptr
	Args [6]uintptr
	keep []any // keeps the memory alive that Args point at
}

// NewCall returns a call of system call number nr. Each argument is an int, a string (which the
// kernel gets with a terminating zero byte), or an unsafe.Pointer to memory that must not
// change before Start returns.
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

// Filter is a seccomp program. It must allow execve, and sendmsg if Listen is set; and write
// and exit_group if a failure of execve is to be reported. Installing it needs no_new_privs,
// for which a Call can be made, or CAP_SYS_ADMIN.
type Filter struct {
	Program []unix.SockFilter // 1 to 4096 instructions
	// Listen is called with the descriptor that receives the SECCOMP_RET_USER_NOTIF events of
	// the filter, before the child executes its program. Listen owns the descriptor, and must
	// not wait for the child. If Listen is nil, the filter must not return
	// SECCOMP_RET_USER_NOTIF.
	Listen func(listener *os.File)
}

// ErrNoListener is returned by Start if the kernel refuses the listener because a filter of
// this process, such as one of a container around it, has one already.
var ErrNoListener = errors.New("no listener for system calls is to be had")

// filterJob is a Filter in a form for which the child needs to allocate nothing.
type filterJob struct {
	program unix.SockFprog
	flags   uintptr
	socket  int // the child sends its listener to this descriptor
	message syscall.Msghdr
	rights  rights
	byteOne [1]byte
	vector  syscall.Iovec
	near    *os.File
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
	near, low, err := syscalls.SocketPair("seccomp")
	if err != nil {
		return nil, err
	}
	// As for job.failure: a lower number could be one of those that the child gives to its
	// Files.
	far, err := unix.FcntlInt(low.Fd(), unix.F_DUPFD_CLOEXEC, firstSpare)
	_ = low.Close()
	if err != nil {
		_ = near.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	f.near, f.socket, f.listen = near, far, filter.Listen
	f.flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	f.rights.header = syscall.Cmsghdr{Level: unix.SOL_SOCKET, Type: unix.SCM_RIGHTS}
	f.rights.header.SetLen(syscall.CmsgLen(4))
	f.vector = syscall.Iovec{Base: &f.byteOne[0], Len: 1}
	f.message = syscall.Msghdr{Iov: &f.vector, Iovlen: 1, Control: (*byte)(unsafe.Pointer(&f.rights))}
	f.message.SetControllen(syscall.CmsgSpace(4))
	return func() {
		_ = f.near.Close()
		if f.socket >= 0 {
			_ = unix.Close(f.socket)
		}
	}, nil
}

// install installs the filter. It runs in the child, so the rules of job.fork apply.
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

// receive passes the listener to Listen. It returns nil also if no listener came: then the
// child has failed, and awaitExec returns that error.
func (f *filterJob) receive(deadline time.Time) error {
	if f.listen == nil {
		return nil
	}
	_ = unix.Close(f.socket) // the child's end: with a copy open here, the child's exit would not end recvmsg
	f.socket = -1
	buf := make([]byte, unix.CmsgSpace(4))
	if err := awaitReadable(int(f.near.Fd()), deadline); err != nil {
		return fmt.Errorf("receive listener: %w", err)
	}
	var n, oobn int
	err := syscalls.IgnoringEINTR(func() (err error) {
		n, oobn, _, _, err = unix.Recvmsg(int(f.near.Fd()), make([]byte, 1), buf, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if err != nil {
		return os.NewSyscallError("recvmsg", err)
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
