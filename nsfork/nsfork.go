// Package nsfork starts a program in a child process that first joins namespaces.
//
// A process with several threads, as every Go program is, cannot join a user or time namespace
// itself; a child that has only just been forked can. The child can also restrict itself before
// it executes its program: see Call and Filter. In all else Start does what os.StartProcess
// does. The package knows nothing of containers and virtual machines.
package nsfork

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// Join is a namespace that the child joins.
type Join struct {
	File *os.File
	Flag int // one CLONE_NEW* flag
}

// Request describes the program to start.
type Request struct {
	Path      string
	Args, Env []string
	// Files become the child's descriptors from 0 on. At most 64 are possible.
	Files []*os.File
	// Clone holds the CLONE_NEW* flags of the namespaces to make.
	Clone uintptr
	// CgroupFD is an open directory of the cgroup (version 2) in which the child starts. If it
	// is negative, the child starts in the caller's cgroup.
	CgroupFD int
	// Joins are joined in this order before the program is executed.
	Joins []Join
	// Root: the child becomes uid and gid 0, without supplementary groups, in the user
	// namespace that it has joined or made.
	Root bool
	// DieWithThread: the kernel kills the program when the thread that called Start ends, for
	// whatever reason. The caller must keep its goroutine locked to that thread as long as the
	// program is to live.
	DieWithThread bool
	// Calls are made in this order, after everything above.
	Calls []Call
	// Filter is installed last, directly before execve. Nil: none.
	Filter *Filter
}

// cloneArgs is the kernel's struct clone_args up to the field cgroup.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

// startTimeout bounds how long a child may take to execute its program, or to join the
// namespaces that it waits in. Its calls mount, and read the program, which may be on a
// server that does not answer.
var startTimeout = time.Minute

const cloneIntoCgroup = 0x200000000 // CLONE_INTO_CGROUP

// firstSpare is larger than every descriptor number that a child gets.
const firstSpare = 64

// job is a Request in a form for which the child needs to allocate nothing.
type job struct {
	clone cloneArgs
	joins []joinFD
	files []int
	root  bool
	path  *byte
	argv  []*byte
	envv  []*byte
	dir   *byte
	// dieWithThread is Request.DieWithThread. alive is the writing end of the pipe over which
	// the child reports a failure: poll shows an error on it when the parent has ended.
	dieWithThread bool
	alive         unix.PollFd
	readEnd       int
	calls         []Call
	filter        filterJob
	// hold is nil if a program is executed. Otherwise it is a pipe: the child executes nothing,
	// waits at the reading end, and exits when the parent closes the writing end, hold[1].
	hold    *[2]int
	failure int // the child writes its failure to this descriptor
	fail    failure
}

type joinFD struct{ fd, flag int }

// failure is what a child writes if it fails: the step that failed, and the error number.
type failure struct{ step, errno int32 }

var steps = [...]string{
	"fork", "join namespace", "setgroups", "setgid", "setuid", "setsid", "pass descriptors", "chdir", "exec",
	"set parent-death signal", "install filter",
}

const (
	stepFork = iota
	stepJoin
	stepGroups
	stepGID
	stepUID
	stepSession
	stepFiles
	stepChdir
	stepExec
	stepDeath
	stepFilter
	stepCall // this number and higher: index in Request.Calls
)

// Start starts the program as the leader of a new session and returns its pid. The error is
// that of the first step that failed; then no child is left. The caller has to wait for the
// child.
func Start(r *Request) (pid int, err error) {
	if len(r.Files) > firstSpare {
		return 0, fmt.Errorf("start %s: %d descriptors are more than %d", r.Path, len(r.Files), firstSpare)
	}
	j := &job{root: r.Root, dieWithThread: r.DieWithThread, calls: r.Calls}
	if j.path, err = unix.BytePtrFromString(r.Path); err != nil {
		return 0, err
	}
	if j.argv, err = syscall.SlicePtrFromStrings(r.Args); err != nil {
		return 0, err
	}
	if j.envv, err = syscall.SlicePtrFromStrings(r.Env); err != nil {
		return 0, err
	}
	j.clone.flags = uint64(r.Clone)
	if r.CgroupFD >= 0 {
		j.clone.flags |= cloneIntoCgroup
		j.clone.cgroup = uint64(r.CgroupFD)
	}
	for _, n := range r.Joins {
		j.joins = append(j.joins, joinFD{int(n.File.Fd()), n.Flag})
	}
	// The child moves its descriptors to the numbers 0, 1, 2 and so on. Copies above firstSpare
	// cannot be overwritten by that.
	var spare []int
	defer func() {
		for _, fd := range spare {
			_ = unix.Close(fd)
		}
	}()
	for _, f := range r.Files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, firstSpare)
		if err != nil {
			return 0, os.NewSyscallError("fcntl", err)
		}
		spare = append(spare, fd)
	}
	j.files = spare
	closeFilter, err := j.filter.prepare(r.Filter)
	if err != nil {
		return 0, err
	}
	defer closeFilter()
	pid, err = j.start()
	runtime.KeepAlive(r)
	return pid, err
}

// start forks. It returns when the child has executed its program, or waits if hold is set.
func (j *job) start() (pid int, err error) {
	if j.dir, err = unix.BytePtrFromString("/"); err != nil {
		return 0, err
	}
	j.clone.exitSignal = uint64(unix.SIGCHLD)
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return 0, os.NewSyscallError("pipe2", err)
	}
	// A lower number could be one of those that the child gives to its Files, which would close
	// this end of the pipe before the child can report a failure.
	told, err := unix.FcntlInt(uintptr(fds[1]), unix.F_DUPFD_CLOEXEC, firstSpare)
	_ = unix.Close(fds[1])
	if err != nil {
		_ = unix.Close(fds[0])
		return 0, os.NewSyscallError("fcntl", err)
	}
	j.failure = told
	j.alive = unix.PollFd{Fd: int32(told)}
	j.readEnd = fds[0]
	syscall.ForkLock.Lock()
	runtimeBeforeFork()
	child, errno := j.fork()
	runtimeAfterFork()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(j)
	_ = unix.Close(told)
	defer func() { _ = unix.Close(fds[0]) }()
	if errno != 0 {
		return 0, os.NewSyscallError("clone3", errno)
	}
	pid = int(child)
	deadline := time.Now().Add(startTimeout)
	if j.hold != nil {
		return pid, awaitHeld(fds[0], deadline)
	}
	if err := j.filter.receive(deadline); err != nil {
		return 0, errors.Join(err, endChild(pid))
	}
	return pid, j.awaitExec(fds[0], pid, deadline)
}

// awaitReadable returns an error if there is nothing to read by the deadline.
func awaitReadable(fd int, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("the child has not started its program within %s", startTimeout)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, int(left/time.Millisecond)+1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n > 0: // or the end
			return nil
		}
	}
}

// endChild kills a child. It does not wait for the end, which may not come: see startTimeout.
func endChild(pid int) error {
	err := unix.Kill(pid, unix.SIGKILL)
	go reap(pid) // it may be in a system call that not even this ends
	return err
}

// awaitExec waits until the child has executed its program, which closes the pipe, or has
// reported a failure. A child that fails exits.
func (j *job) awaitExec(fd, pid int, deadline time.Time) error {
	f, n, err := readFailure(fd, deadline)
	if err == nil && n == 0 {
		return nil
	}
	if err != nil {
		return errors.Join(err, endChild(pid))
	}
	reap(pid)
	if i := int(f.step) - stepCall; i >= 0 && i < len(j.calls) {
		return os.NewSyscallError(j.calls[i].Name, syscall.Errno(f.errno))
	}
	if f.step == stepFilter && syscall.Errno(f.errno) == unix.EBUSY {
		return ErrNoListener
	}
	return f.err()
}

// reap waits until a child has exited.
func reap(pid int) {
	_ = syscalls.IgnoringEINTR(func() error {
		_, err := unix.Wait4(pid, nil, 0, nil)
		return err
	})
}

func readFailure(fd int, deadline time.Time) (failure, int, error) {
	var f failure
	if err := awaitReadable(fd, deadline); err != nil {
		return f, 0, err
	}
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&f)), unsafe.Sizeof(f))
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return f, 0, os.NewSyscallError("read", err)
		case n != 0 && n != len(buf):
			return f, n, io.ErrUnexpectedEOF
		default:
			return f, n, nil
		}
	}
}

func (f failure) err() error {
	step := "start"
	if int(f.step) < len(steps) && f.step >= 0 {
		step = steps[f.step]
	}
	return os.NewSyscallError(step, syscall.Errno(f.errno))
}

// fork forks, with all signals blocked. In the child it never returns, and only makes system
// calls: it may allocate nothing and call no other function. The child is a copy of one thread
// of this program, and locks that other threads held would never be released in it.
//
//go:norace
//go:nosplit
func (j *job) fork() (uintptr, syscall.Errno) { //nolint:funlen // in the child there are no functions to call
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&j.clone)), unsafe.Sizeof(j.clone), 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	runtimeAfterForkInChild()
	step := int32(stepDeath)
	if j.dieWithThread {
		if _, _, errno = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0); errno != 0 {
			goto failed
		}
		// The parent may have ended before prctl, and then no signal comes. getppid would not
		// tell: the number of a parent in another pid namespace is always 0. So poll tests
		// whether anybody can still read the pipe.
		_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(j.readEnd), 0, 0)
		_, _, _ = syscall.RawSyscall(unix.SYS_POLL, uintptr(unsafe.Pointer(&j.alive)), 1, 0)
		if j.alive.Revents != 0 {
			goto end
		}
	}
	step = stepJoin
	for i := range j.joins {
		_, _, errno = syscall.RawSyscall(unix.SYS_SETNS, uintptr(j.joins[i].fd), uintptr(j.joins[i].flag), 0)
		if errno != 0 {
			goto failed
		}
	}
	if j.root {
		step = stepGroups
		// EPERM: the user namespace forbids setgroups. Then the child has no groups to drop.
		_, _, errno = syscall.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
		if errno != 0 && errno != unix.EPERM {
			goto failed
		}
		step = stepGID
		if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); errno != 0 {
			goto failed
		}
		step = stepUID
		if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); errno != 0 {
			goto failed
		}
	}
	if j.hold != nil {
		// A failure with error number 0 tells the parent that the child has joined its
		// namespaces.
		_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(j.hold[1]), 0, 0)
		_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(j.failure), uintptr(unsafe.Pointer(&j.fail)), unsafe.Sizeof(j.fail))
		_, _, _ = syscall.RawSyscall(unix.SYS_READ, uintptr(j.hold[0]), uintptr(unsafe.Pointer(&j.fail)), 1)
		for {
			_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	step = stepSession
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		goto failed
	}
	step = stepFiles
	for i := range j.files {
		if _, _, errno = syscall.RawSyscall(unix.SYS_DUP3, uintptr(j.files[i]), uintptr(i), 0); errno != 0 {
			goto failed
		}
	}
	step = stepChdir
	if _, _, errno = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(j.dir)), 0, 0); errno != 0 {
		goto failed
	}
	for i := range j.calls {
		c := &j.calls[i]
		step = stepCall + int32(i)
		_, _, errno = syscall.RawSyscall6(c.Nr, c.Args[0], c.Args[1], c.Args[2], c.Args[3], c.Args[4], c.Args[5])
		if errno != 0 {
			goto failed
		}
	}
	if j.filter.program.Len > 0 {
		step = stepFilter
		if errno = j.filter.install(); errno != 0 {
			goto failed
		}
	}
	step = stepExec
	_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(j.path)),
		uintptr(unsafe.Pointer(&j.argv[0])), uintptr(unsafe.Pointer(&j.envv[0])))
failed:
	j.fail.step, j.fail.errno = step, int32(errno)
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(j.failure), uintptr(unsafe.Pointer(&j.fail)), unsafe.Sizeof(j.fail))
end:
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 253, 0, 0)
	}
}

// Functions of Go's runtime that os.StartProcess calls around a fork: they block signals, so
// that none reaches the child before it has reset its handlers.

//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

//go:linkname runtimeAfterForkInChild syscall.runtime_AfterForkInChild
func runtimeAfterForkInChild()

// awaitHeld returns when the child has joined its namespaces and waits.
func awaitHeld(fd int, deadline time.Time) error {
	f, n, err := readFailure(fd, deadline)
	switch {
	case err != nil:
		return err
	case n == 0:
		return io.ErrUnexpectedEOF
	case f.errno != 0:
		return f.err()
	}
	return nil
}

// held starts a child that executes nothing. It joins the namespaces in joins, or makes those
// of the flags in clone, and waits until end is called. The caller must call end.
func held(clone uintptr, joins ...joinFD) (pid int, end func(), err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return 0, nil, os.NewSyscallError("pipe2", err)
	}
	j := &job{hold: &fds, joins: joins}
	j.clone.flags = uint64(clone)
	pid, err = j.start()
	_ = unix.Close(fds[0])
	end = func() {
		_ = unix.Close(fds[1])
		if pid > 0 {
			reap(pid)
		}
	}
	if err != nil {
		_ = unix.Close(fds[1])
		if pid > 0 {
			err = errors.Join(err, endChild(pid))
		}
		return 0, nil, err
	}
	return pid, end, nil
}

// IDMaps returns the content of uid_map and gid_map of a user namespace. The outer ids are
// those of the caller's user namespace.
func IDMaps(userNS *os.File) (uidMap, gidMap string, err error) {
	pid, end, err := held(0, joinFD{int(userNS.Fd()), unix.CLONE_NEWUSER})
	runtime.KeepAlive(userNS)
	if err != nil {
		return "", "", err
	}
	defer end()
	var maps [2]string
	for i, name := range mapFiles {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			return "", "", err
		}
		maps[i] = strings.TrimSpace(string(b))
	}
	return maps[0], maps[1], nil
}

var mapFiles = [...]string{"uid_map", "gid_map"}

// NewUserNS makes a user namespace with these mappings, in the format of uid_map and gid_map.
// No process is in it; it exists as long as the returned file is open.
func NewUserNS(uidMap, gidMap string) (*os.File, error) {
	pid, end, err := held(unix.CLONE_NEWUSER)
	if err != nil {
		return nil, err
	}
	defer end()
	for i, text := range [...]string{uidMap, gidMap} {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, mapFiles[i]), []byte(text), 0); err != nil {
			return nil, err
		}
	}
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
}
