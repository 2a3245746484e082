package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
	"github.com/huskvm/husk/nsfork"
)

// forkRequest says how to start an init stage.
type forkRequest struct {
	args           []string
	clone          uintptr
	userNS         *userNS       // of the container; nil: the child stays in the caller's
	enter          func() error  // changes the namespaces of the thread that forks; may be nil
	joins          []nsfork.Join // namespaces that the child joins itself
	noSharedMemory bool          // fork without sharing memory (no CLONE_VM)
	cgroupFD       int           // negative: the child stays in the caller's cgroup
	passed         []*os.File    // the process's descriptors from number firstFD on
	extra          []*os.File    // the child's descriptors from pidfdFD on
	terminal       bool
	// oomKilled is called when the process has ended.
	oomKilled func() bool
}

// stageEnv configures Go's runtime in the init stage. The stage lives for milliseconds on one
// thread: garbage collection and preemption would cost more than they give.
var stageEnv = []string{"GOGC=off", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1"}

// passedEnv tells the init stage how many passed descriptors follow its stdio. Its own
// descriptors come after those.
const passedEnv = "HUSK_PASSED"

func (r *forkRequest) env() []string {
	if len(r.passed) == 0 {
		return stageEnv
	}
	return append(stageEnv[:len(stageEnv):len(stageEnv)], passedEnv+"="+strconv.Itoa(len(r.passed)))
}

// fork starts an init stage. The caller closes pidfd.
func fork(r *forkRequest) (_ *Process, pidfd *os.File, err error) {
	var child []*os.File // the stage's descriptors
	p := &Process{done: make(chan struct{})}
	defer func() {
		for _, f := range child {
			_ = f.Close()
		}
		if err != nil {
			if p.conn != nil {
				p.conn.close()
			}
			p.CloseIO()
		}
	}()
	if child, err = p.openStdio(r.terminal); err != nil {
		return nil, nil, err
	}
	if err := r.giveToRoot(child); err != nil {
		return nil, nil, err
	}
	ours, theirs, err := syscalls.PolledSocketPair("init stage")
	if err != nil {
		return nil, nil, err
	}
	child = append(child, theirs)
	if p.conn, err = newConn(ours); err != nil {
		return nil, nil, err
	}
	handle, err := r.startEntered(p, r.files(child))
	if err != nil {
		return nil, nil, fmt.Errorf("start init stage: %w", err)
	}
	p.forked = time.Now()
	// From here on there is a process, which is reaped whatever else fails.
	go p.reap(r.oomKilled)
	if handle < 0 {
		p.abandon()
		return nil, nil, errors.New("start init stage: the kernel gives no pidfd")
	}
	return p, os.NewFile(uintptr(handle), "pidfd"), nil
}

// giveToRoot gives the container's root what its process reads and writes: stdio, unless that
// is a terminal, with which the stage has /dev/null, and the descriptors that are passed.
func (r *forkRequest) giveToRoot(stdio []*os.File) error {
	given := r.passed
	if !r.terminal {
		given = slices.Concat(given, stdio)
	}
	for _, f := range given {
		if err := r.userNS.chown(f); err != nil {
			return err
		}
	}
	return nil
}

// files returns the stage's descriptors in the order in which the stage expects them: stdio,
// those that are passed, the rest of child, and extra ones.
func (r *forkRequest) files(child []*os.File) []*os.File {
	return slices.Concat(child[:stdioFDs], r.passed, child[stdioFDs:], r.extra)
}

// startEntered starts the stage, where enter has moved the thread, if there is an enter. It
// returns the pidfd, which is negative if the kernel gave none.
func (r *forkRequest) startEntered(p *Process, files []*os.File) (handle int, err error) {
	start := func() (err error) {
		p.proc, handle, err = r.start(files)
		return err
	}
	if r.enter == nil {
		err = start()
		return handle, err
	}
	err = onOwnThread(func() error {
		if err := r.enter(); err != nil {
			return err
		}
		return start()
	})
	return handle, err
}

// start starts the init stage from the calling thread. pidfd is negative if the kernel gave
// none.
func (r *forkRequest) start(files []*os.File) (_ *os.Process, pidfd int, err error) {
	args := append([]string{InitArg}, r.args[1:]...)
	if len(r.joins) > 0 || r.noSharedMemory {
		return r.startByNSFork(args, files)
	}
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   r.env(),
		Files: files,
		Sys:   &syscall.SysProcAttr{Cloneflags: r.clone, Setsid: true, PidFD: &pidfd},
	}
	if r.cgroupFD >= 0 {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, r.cgroupFD
	}
	if r.clone&unix.CLONE_NEWUSER != 0 {
		attr.Sys.UidMappings, attr.Sys.GidMappings = r.userNS.uids, r.userNS.gids
		attr.Sys.GidMappingsEnableSetgroups = true
		attr.Sys.Credential = &syscall.Credential{} // root of the user namespace
	}
	pidfd = -1
	proc, err := os.StartProcess(r.args[0], args, attr)
	return proc, pidfd, err
}

func (r *forkRequest) startByNSFork(args []string, files []*os.File) (*os.Process, int, error) {
	pid, err := nsfork.Start(&nsfork.Request{
		Path: r.args[0], Args: args, Env: r.env(), Files: files,
		Clone: r.clone, CgroupFD: r.cgroupFD, Joins: r.joins, Root: r.userNS != nil,
	})
	if err != nil {
		return nil, -1, err
	}
	proc, err := os.FindProcess(pid)
	if err != nil {
		return nil, -1, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		pidfd = -1 // the process exists and the caller has to end it
	}
	return proc, pidfd, nil
}

// onOwnThread runs f on a thread that ends afterwards, because f changes the namespaces of its
// thread.
func onOwnThread(f func() error) error {
	// Go forks once per program to find out whether pidfds work. That fork must not happen on a
	// thread whose children start in another pid namespace, so it is caused here.
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Release()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread never ends, and /proc/PID shows its namespaces as the process's.
			// While this goroutine is locked to the main thread, f runs on another one.
			defer runtime.UnlockOSThread()
			result <- onOwnThread(f)
			return
		}
		result <- f() // without an unlock, so the thread ends with the goroutine
	}()
	return <-result
}

// openStdio makes the process's stdio and returns the ends for the child.
func (p *Process) openStdio(terminal bool) ([]*os.File, error) {
	var child []*os.File
	if terminal {
		// With a terminal the stage opens the pty itself, in the container.
		for range 3 {
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				return child, err
			}
			child = append(child, null)
		}
		return child, nil
	}
	for i, parent := range []**os.File{&p.Stdin, &p.Stdout, &p.Stderr} {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return child, os.NewSyscallError("pipe2", err)
		}
		ours, theirs := fds[0], fds[1]
		if i == 0 {
			ours, theirs = theirs, ours
		}
		child = append(child, os.NewFile(uintptr(theirs), "stdio"))
		// Only the parent's end is non-blocking: then a Close ends a pending Read.
		if err := unix.SetNonblock(ours, true); err != nil {
			_ = unix.Close(ours)
			return child, os.NewSyscallError("fcntl", err)
		}
		*parent = os.NewFile(uintptr(ours), "stdio")
	}
	return child, nil
}

// enterNamespaces joins namespaces by path. Children of the calling thread start in them.
func enterNamespaces(joins []namespace) error {
	for _, ns := range joins {
		fd, err := unix.Open(ns.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open namespace", Path: ns.path, Err: err}
		}
		err = unix.Setns(fd, ns.flag)
		_ = unix.Close(fd)
		if err != nil {
			return &os.PathError{Op: "join namespace", Path: ns.path, Err: err}
		}
	}
	return nil
}

// prepareThread returns a function that changes the thread from which the container's init
// stage is forked; nil if nothing has to be changed.
func (p *plan) prepareThread() func() error {
	if len(p.joins) == 0 && p.userNS == nil && p.timeNS == nil {
		return nil
	}
	return func() error {
		if p.timeNS != nil {
			if err := newTimeNS(*p.timeNS); err != nil {
				return err
			}
		}
		if p.userNS != nil {
			if err := p.makeBase(); err != nil {
				return err
			}
		}
		return enterNamespaces(p.joins)
	}
}

// newTimeNS gives the children of the calling thread a new time namespace. The init stage has
// to be forked into it: some kernels do not move a process there at execve.
func newTimeNS(offsets string) error {
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return os.NewSyscallError("unshare CLONE_NEWTIME", err)
	}
	if offsets == "" {
		return nil
	}
	if err := os.WriteFile(procFile(unix.Gettid(), "timens_offsets"), []byte(offsets), 0); err != nil {
		return fmt.Errorf("set time offsets: %w", err)
	}
	return nil
}
