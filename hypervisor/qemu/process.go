package qemu

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/linux/syscalls"
	"github.com/huskvm/husk/nsfork"
)

// process is a vmm process. It ends when this process ends.
type process struct {
	proc   *os.Process
	pidfd  *os.File      // closed when the process was reaped
	exited chan struct{} // closed when the process was reaped
	// These are set before exited is closed.
	state *os.ProcessState // nil if err is not nil
	err   error            // of waiting for the process
}

// launch describes how a vmm process is started.
type launch struct {
	cfg hypervisor.Config
	// argv returns the arguments after the program's name, with or without a filter of QEMU's
	// own.
	argv func(ownFilter bool) []string
	// files become the vmm's descriptors from 3 on, and output its descriptors 1 and 2. They
	// stay the caller's.
	files  []*os.File
	output *os.File
	watch  *watcher
	// args is the whole command line, once start has returned.
	args []string
}

// start starts the vmm, restricted and under its filter. It gets nothing else of this process:
// an environment of its own, a session of its own, and no other descriptors.
func (l *launch) start() (*process, error) {
	if err := syscalls.CloseOnExec(3); err != nil {
		return nil, fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	p := &process{exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the parent-death signal when the thread that forked ends, even if
		// the process goes on. So this thread waits here as long as the VM runs.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := l.fork(p)
		started <- err
		if err != nil {
			return
		}
		p.state, p.err = p.proc.Wait()
		p.pidfd.Close() // nothing was written to it
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// fork starts the process. It is called on the thread that waits for it.
func (l *launch) fork(p *process) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		l.watch.unwatched()
		return err
	}
	defer null.Close()
	pid, err := l.execute(null)
	if err != nil {
		return fmt.Errorf("execute %s: %w", l.cfg.Binary, err)
	}
	if p.proc, err = os.FindProcess(pid); err == nil {
		p.pidfd, err = pidfdOpen(pid)
	}
	if err == nil {
		err = l.watch.started(pid, int(p.pidfd.Fd()))
	}
	if err != nil {
		close(l.watch.vmm) // the watcher waits for it
		p.pidfd.Close()    // closing nil does nothing
		kerr := p.kill()
		if kerr == nil {
			_, kerr = p.proc.Wait()
		}
		return errors.Join(err, kerr)
	}
	return nil
}

// execute returns the vmm's pid when the vmm executes its program.
func (l *launch) execute(null *os.File) (pid int, err error) {
	serving := false
	defer func() {
		switch {
		case !serving:
			l.watch.unwatched()
		case err != nil:
			close(l.watch.vmm)
		}
	}()
	cfg := l.cfg
	if cfg.User != nil {
		// The copy has a number that none of the vmm's descriptors gets.
		users, err := spare(cfg.User.Namespace)
		if err != nil {
			return 0, err
		}
		defer users.Close()
		u := *cfg.User
		u.Namespace, cfg.User = users, &u
	}
	calls, err := restrictions(cfg)
	if err != nil {
		return 0, err
	}
	request := &nsfork.Request{
		Path: l.cfg.Binary, Args: append([]string{l.cfg.Binary}, l.argv(false)...),
		// The environment is fixed, because an engine's or a user's LD_LIBRARY_PATH and QEMU_*
		// must not reach the vmm.
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"},
		Files: append([]*os.File{null, l.output, l.output}, l.files...),
		// The vmm has a mount namespace of its own: it needs the host's files to start,
		// whatever this process does to its root, and is confined afterwards. It inherits the
		// umask; QEMU's 9p server sets each file's mode itself after it has created the file.
		Clone: namespacesOf(l.cfg), CgroupFD: -1, DieWithThread: true, Calls: calls,
	}
	filter := &nsfork.Filter{Listen: func(granted *os.File) {
		if calls, err := newListener(granted); err == nil {
			serving = true
			go l.watch.serve(calls)
		}
	}}
	request.Filter = filter
	if filter.Program, err = l.program(true); err != nil {
		return 0, err
	}
	l.args = request.Args
	pid, err = nsfork.Start(request)
	if !errors.Is(err, nsfork.ErrNoListener) {
		return pid, err
	}
	// A filter around husk, such as that of a container, has a listener already, and the kernel
	// allows only one. Without a listener the vmm works except for the calls that have to be
	// answered, and it gets a filter that still allows execve and a second one of QEMU's own.
	if l.watch.start != nil {
		return 0, fmt.Errorf("open the guest's kernel for a vmm that is not root: %w", err)
	}
	if l.watch.ram != nil {
		return 0, fmt.Errorf("hold the template's memory read-only: %w: %w", err, hypervisor.ErrTemplateUnsafe)
	}
	fmt.Fprintf(l.output, "husk: sockets, fifos and devices cannot be made in shared directories: %v\n", err)
	filter.Listen = nil
	request.Args = append([]string{l.cfg.Binary}, l.argv(true)...)
	l.args = request.Args
	if filter.Program, err = l.program(false); err != nil {
		return 0, err
	}
	return nsfork.Start(request)
}

// spare returns a duplicate of f with a high descriptor number.
func spare(f *os.File) (*os.File, error) {
	const first = 128 // nsfork.Start uses numbers from 64 on
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, first)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (l *launch) program(listener bool) ([]unix.SockFilter, error) {
	code, err := newFilter(l.cfg, l.watch.watched(), listener)
	if err != nil {
		return nil, err
	}
	return syscalls.AssembleFilter(code)
}

// kill kills the vmm and does not wait for its end.
func (p *process) kill() error {
	if err := p.proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill vmm: %w", err)
	}
	return nil
}

// pidfdOpen returns a nil file with an error.
func pidfdOpen(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "vmm"), nil
}
