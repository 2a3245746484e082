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

// process is a vmm process that dies with this one.
type process struct {
	proc   *os.Process
	pidfd  *os.File      // closed once reaped
	exited chan struct{} // closed once reaped
	// Set before exited is closed.
	state *os.ProcessState // nil if err is not
	err   error            // of the wait
}

// launch is what a vmm process is started from.
type launch struct {
	cfg hypervisor.Config
	// argv are its arguments after the program's name, with a filter of its own or not.
	argv func(ownFilter bool) []string
	// files become its descriptors 3 and up, and output 1 and 2. They are borrowed.
	files  []*os.File
	output *os.File
	watch  *watcher
}

// start runs the vmm with nothing else of this process: no environment, no other
// descriptor, not its session; restricted and under its filter.
func (l *launch) start() (*process, error) {
	if err := syscalls.CloseOnExec(3); err != nil {
		return nil, fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	p := &process{exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The parent-death signal goes with the thread that forked, not with the
		// process: were that thread to end, the kernel would kill the VM. So it is
		// held here, waiting, for as long as the VM runs.
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

// fork is for the thread that stays.
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
		close(l.watch.vmm) // which the watcher waits for
		p.pidfd.Close()    // nil is an error, and harmless
		kerr := p.kill()
		if kerr == nil {
			_, kerr = p.proc.Wait()
		}
		return errors.Join(err, kerr)
	}
	return nil
}

// execute returns the vmm's pid once its program runs.
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
		// Out of the way of the numbers that the vmm's descriptors get.
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
		// An engine's or a user's LD_LIBRARY_PATH and QEMU_* must not reach the vmm.
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"},
		Files: append([]*os.File{null, l.output, l.output}, l.files...),
		// The vmm needs the host's tree to start, whatever the caller does to its own root
		// meanwhile, and is confined afterwards. The umask is inherited: QEMU's 9p sets each
		// mode itself, after creating, to what the guest asked for.
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
	pid, err = nsfork.Start(request)
	if !errors.Is(err, nsfork.ErrNoListener) {
		return pid, err
	}
	// husk runs in something that listens itself. The vmm works but for the calls that
	// need help, and has a filter of its own to lose execve by.
	if l.watch.start != nil {
		return 0, fmt.Errorf("open the guest's kernel for a vmm that is not root: %w", err)
	}
	if l.watch.ram != nil {
		return 0, fmt.Errorf("hold the template's memory read-only: %w: %w", err, hypervisor.ErrTemplateUnsafe)
	}
	fmt.Fprintf(l.output, "husk: sockets, fifos and devices cannot be made in shared directories: %v\n", err)
	filter.Listen = nil
	request.Args = append([]string{l.cfg.Binary}, l.argv(true)...)
	if filter.Program, err = l.program(false); err != nil {
		return 0, err
	}
	return nsfork.Start(request)
}

// spare returns a copy of a descriptor with a high number.
func spare(f *os.File) (*os.File, error) {
	const first = 128 // nsfork.Start takes half as many
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
	return assemble(code)
}

// kill returns without waiting for the end.
func (p *process) kill() error {
	if err := p.proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill vmm: %w", err)
	}
	return nil
}

// pidfdOpen returns nil with an error.
func pidfdOpen(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "vmm"), nil
}
