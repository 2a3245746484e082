// Package nsfork starts a program in a child that first joins namespaces which a
// process of several threads, and every Go program is one, can't join itself: user
// and time namespaces. A child can also restrict itself before it executes its
// program: see Call and Filter. It is what os.StartProcess is otherwise, and knows
// nothing of containers or virtual machines.
package nsfork

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Join is a namespace for the child to join.
type Join struct {
	File *os.File
	Flag int // CLONE_NEW*
}

// Request says what to start.
type Request struct {
	Path      string
	Args, Env []string
	// Files become the child's descriptors from 0 on.
	Files []*os.File
	// Clone are the CLONE_NEW* of namespaces to make.
	Clone uintptr
	// CgroupFD is of the cgroup (version 2) to be born in; negative: the caller's.
	CgroupFD int
	// Joins are joined in this order, before the program is executed.
	Joins []Join
	// Root makes the child user and group 0 of the user namespace it is in then,
	// with no other groups.
	Root bool
	// DieWithThread has the kernel kill the program when the calling thread ends,
	// however it ends. The thread must be locked for as long.
	DieWithThread bool
	// Calls are made, in this order, after everything above.
	Calls []Call
	// Filter comes last. Nil: none.
	Filter *Filter
}

// cloneArgs is the kernel's struct clone_args up to cgroup.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

const cloneIntoCgroup = 0x200000000 // CLONE_INTO_CGROUP

// firstSpare is above every descriptor that a child is given.
const firstSpare = 64

// job is a request in the form the child needs it in: it must not allocate.
type job struct {
	clone cloneArgs
	joins []joinFD
	files []int
	root  bool
	path  *byte
	argv  []*byte
	envv  []*byte
	dir   *byte
	// dieWithThread has the child killed with the thread that forks it. alive is a
	// pipe whose other end closes with this process.
	dieWithThread bool
	alive         unix.PollFd
	readEnd       int
	calls         []Call
	filter        filterJob
	// hold is a pipe: nothing is executed, and the child ends when the parent's end
	// of it, the second, closes. Nil: a program is executed.
	hold    *[2]int
	failure int // where the child tells why it failed
	fail    failure
}

type joinFD struct{ fd, flag int }

// failure is what a child that fails writes: which step, and the error number.
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
	stepCall // and up: Request.Calls
)

// Start starts the program, leading a session of its own, and returns its number.
// The error is that of the first step that failed; then there is no child.
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
	// Out of the way of the numbers they become.
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

// start forks, and returns when the child has executed its program or waits.
func (j *job) start() (pid int, err error) {
	if j.dir, err = unix.BytePtrFromString("/"); err != nil {
		return 0, err
	}
	j.clone.exitSignal = uint64(unix.SIGCHLD)
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return 0, os.NewSyscallError("pipe2", err)
	}
	// Where a descriptor of the child's own goes would close it.
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
	if j.hold != nil {
		return pid, awaitHeld(fds[0])
	}
	if err := j.filter.receive(); err != nil {
		return 0, errors.Join(err, endChild(pid))
	}
	return pid, j.awaitExec(fds[0], pid)
}

// endChild ends a child that nobody listens to any more.
func endChild(pid int) error {
	err := unix.Kill(pid, unix.SIGKILL)
	reap(pid)
	return err
}

// awaitExec reads what the child has to say, which is nothing if it has executed
// its program. One that failed has ended.
func (j *job) awaitExec(fd, pid int) error {
	f, n, err := readFailure(fd)
	if err == nil && n == 0 {
		return nil
	}
	reap(pid)
	if err != nil {
		return err
	}
	if i := int(f.step) - stepCall; i >= 0 && i < len(j.calls) {
		return os.NewSyscallError(j.calls[i].Name, syscall.Errno(f.errno))
	}
	if f.step == stepFilter && syscall.Errno(f.errno) == unix.EBUSY {
		return ErrNoListener
	}
	return f.err()
}

// reap waits for a child that ends by itself.
func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func readFailure(fd int) (failure, int, error) {
	var f failure
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

// fork is run with all signals blocked. In the child it never returns, calls
// nothing but system calls and allocates nothing: the child is a copy of one
// thread of this program, and the others, with whatever locks they held, are not
// in it.
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
		// The parent may have ended before. The number of a parent in another pid
		// namespace is 0, dead or alive; a pipe that nobody reads any more tells.
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
		// Denied where the namespace lets nobody, and then there are none to lose.
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
		// A failure of nothing says that the child is there.
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

// What os.StartProcess does around a fork: it keeps signals from a child that has
// no handlers any more.

//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

//go:linkname runtimeAfterForkInChild syscall.runtime_AfterForkInChild
func runtimeAfterForkInChild()

// awaitHeld returns when the child has joined its namespaces and waits.
func awaitHeld(fd int) error {
	f, n, err := readFailure(fd)
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

// held starts a child that has joined the namespaces, or made those of clone, and
// waits there. end ends it.
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
		end()
		return 0, nil, err
	}
	return pid, end, nil
}

// IDMaps returns the text of uid_map and gid_map of a user namespace, as the
// caller's own sees it.
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

// NewUserNS makes a user namespace with these mappings, in the form of uid_map and
// gid_map. No process is in it; the file keeps it.
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
