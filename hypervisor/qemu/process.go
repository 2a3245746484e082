package qemu

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a vmm process that dies with this one.
type process struct {
	cmd    *exec.Cmd
	pidfd  int           // for confine; -1 once that is done
	exited chan struct{} // closed once reaped
	err    error         // of Wait, set before exited is closed
}

// startProcess runs binary with stdout and stderr on output and files as
// descriptors 3 and up, and nothing else of this process: no environment, no
// other descriptor, not its session. It borrows the files. special may be nil.
func startProcess(binary string, argv []string, files []*os.File, output *os.File, special *specialFiles) (*process, error) {
	if err := closeOnExec(); err != nil {
		return nil, fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	//nolint:noctx // it outlives the call that starts it; kill ends it
	cmd := exec.Command(binary, argv...)
	// An engine's or a user's LD_LIBRARY_PATH and QEMU_* must not reach the vmm.
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = output, output
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:    true,
		Pdeathsig: syscall.SIGKILL,
		// The vmm needs the host's tree to start, whatever the caller does to its own
		// root meanwhile, and is confined afterwards. The umask is inherited: QEMU's 9p sets each mode itself,
		// after creating, to what the guest asked for.
		Cloneflags: syscall.CLONE_NEWNS,
	}

	p := &process{cmd: cmd, pidfd: -1, exited: make(chan struct{})}
	cmd.SysProcAttr.PidFD = &p.pidfd
	started := make(chan error)
	go func() {
		// The parent-death signal goes with the thread that forked, not with the
		// process: were that thread to end, the kernel would kill the VM. So it is
		// held here, waiting, for as long as the VM runs.
		// It is never unlocked, but ends: it may be under a filter.
		runtime.LockOSThread()
		err := p.start(special)
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// start is for the thread that stays.
func (p *process) start(special *specialFiles) error {
	if special == nil {
		return p.cmd.Start()
	}
	if err := special.watch(); err != nil {
		// Another listener above, such as that of a container manager husk runs in, or
		// an old kernel. The VM works but for this.
		fmt.Fprintf(p.cmd.Stderr, "husk: sockets, fifos and devices cannot be made in shared directories: %v\n", err)
		return p.cmd.Start()
	}
	defer close(special.forked)
	if err := p.cmd.Start(); err != nil {
		return err
	}
	return special.started(p.cmd.Process.Pid, p.pidfd)
}

// kill returns without waiting for the end.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill vmm: %w", err)
	}
	return nil
}

func (p *process) closePidfd() {
	if p.pidfd >= 0 {
		// Nothing was written to it.
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
}

// closeOnExec marks what this process itself inherited without the flag (an
// engine's leaked descriptors); all that Go opens has it already. Such a
// descriptor in the vmm would keep the engine's pipe or lock open.
func closeOnExec() error {
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	// Before Linux 5.11.
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return err
	}
	for _, path := range fds {
		if fd, err := strconv.Atoi(filepath.Base(path)); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// socketPair returns our end as a connection and the vmm's as a file to inherit.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s socket pair: %w", name, err)
	}
	near, far := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(near) // a duplicate, in non-blocking mode
	if err := errors.Join(err, near.Close()); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("wrap %s socket: %w", name, err), far.Close())
	}
	return conn, far, nil
}
