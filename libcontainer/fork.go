package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/nsfork"
)

// forkRequest says how to start an init stage.
type forkRequest struct {
	args     []string
	clone    uintptr
	userNS   *userNS       // of the container; nil: the caller's
	enter    func() error  // changes the thread to fork from; may be nil
	joins    []nsfork.Join // the child's to join
	apart    bool          // the child may not share memory with the caller for a moment
	cgroupFD int           // negative: the caller's own cgroup
	passed   []*os.File    // the process's descriptors from firstFD on
	extra    []*os.File    // become pidfdFD and on
	terminal bool
	// oomKilled is asked when the process has ended.
	oomKilled func() bool
}

// stageEnv keeps the stage small: it lives for milliseconds, on one thread, and
// must not be interrupted for its own good meanwhile.
var stageEnv = []string{"GOGC=off", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1"}

// passedEnv tells the stage how many descriptors are the process's, which its own
// come after.
const passedEnv = "HUSK_PASSED"

func (r *forkRequest) env() []string {
	if len(r.passed) == 0 {
		return stageEnv
	}
	return append(stageEnv[:len(stageEnv):len(stageEnv)], passedEnv+"="+strconv.Itoa(len(r.passed)))
}

// fork starts an init stage. pidfd is the caller's to close.
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
	given := append([]*os.File(nil), r.passed...)
	if !r.terminal { // else they are /dev/null
		given = append(given, child...)
	}
	for _, f := range given {
		if err := r.userNS.give(f); err != nil {
			return nil, nil, err
		}
	}
	sock, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	child = append(child, os.NewFile(uintptr(sock[1]), "init stage"))
	if err := unix.SetNonblock(sock[0], true); err != nil {
		_ = unix.Close(sock[0])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	if p.conn, err = newConn(sock[0]); err != nil {
		return nil, nil, err
	}
	files := append(child[:stdioFDs:stdioFDs], r.passed...)
	files = append(append(files, child[stdioFDs:]...), r.extra...)
	handle := -1
	start := func() (err error) {
		p.proc, handle, err = r.start(files)
		return err
	}
	if r.enter == nil {
		err = start()
	} else {
		err = onOwnThread(func() error {
			if err := r.enter(); err != nil {
				return err
			}
			return start()
		})
	}
	if err != nil {
		return nil, nil, fmt.Errorf("start init stage: %w", err)
	}
	p.forked = time.Now()
	go p.reap(r.oomKilled)
	if handle < 0 {
		p.abandon()
		return nil, nil, errors.New("start init stage: the kernel gives no pidfd")
	}
	return p, os.NewFile(uintptr(handle), "pidfd"), nil
}

// start starts the stage from the calling thread. pidfd is negative where the
// kernel gives none.
func (r *forkRequest) start(files []*os.File) (_ *os.Process, pidfd int, err error) {
	args := append([]string{InitArg}, r.args[1:]...)
	if len(r.joins) > 0 || r.apart {
		return r.startApart(args, files)
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
		attr.Sys.Credential = &syscall.Credential{} // the namespace's root
	}
	pidfd = -1
	proc, err := os.StartProcess(r.args[0], args, attr)
	return proc, pidfd, err
}

func (r *forkRequest) startApart(args []string, files []*os.File) (*os.Process, int, error) {
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
		pidfd = -1 // there is a process to end, all the same
	}
	return proc, pidfd, nil
}

// onOwnThread runs f on a thread that is thrown away after it, because f changes
// the thread's namespaces.
func onOwnThread(f func() error) error {
	// Go tries out once per program whether it can use pidfds, with a fork; not
	// from a thread whose children are to be in another pid namespace.
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Release()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread is never thrown away, and what it is in shows as this
			// process's in /proc. Held here, it can't be who runs f.
			defer runtime.UnlockOSThread()
			result <- onOwnThread(f)
			return
		}
		result <- f() // and no unlock: the thread ends with the goroutine
	}()
	return <-result
}

// openStdio makes the process's stdio and returns the stage's ends.
func (p *Process) openStdio(terminal bool) ([]*os.File, error) {
	var child []*os.File
	if terminal {
		// The stage opens the terminal, in the container.
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
		// Ours alone is not blocking, so that a Close ends a Read.
		if err := unix.SetNonblock(ours, true); err != nil {
			_ = unix.Close(ours)
			return child, os.NewSyscallError("fcntl", err)
		}
		*parent = os.NewFile(uintptr(ours), "stdio")
	}
	return child, nil
}

// enterNamespaces joins namespaces by path, for the children of the thread.
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

// prepareThread returns what changes the thread that the container's stage is
// forked from; nil: nothing.
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

// newTimeNS gives the thread's children a time namespace. They have to be born
// there: not every kernel has a process enter it with execve.
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
