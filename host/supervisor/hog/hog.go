// Package hog is a process that uses memory until the kernel kills it. If the guest's kernel
// has killed a process because memory was short, the supervisor starts a hog in the container's
// cgroup on the host: engines learn of such a kill only from the host's kernel, which counts
// kills in a cgroup, and not from the runtime.
package hog

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/supervisor/launch"
)

// lifetime bounds how long a hog may use memory before the kernel ends it in any case.
const lifetime = 2 * time.Second

// Process is a hog that is ready and has used no memory yet.
type Process struct {
	cmd  *exec.Cmd
	goes io.WriteCloser
	done chan struct{} // closed when it has ended
}

// Program is the name of this program in the directory that Start gets.
const Program = "husk"

// Start starts a hog that will use at most this many bytes. program is a directory with this
// program, because in the caller's root no path can be trusted. The hog has the caller's
// oom_score_adj.
func Start(program *os.File, bytes int64) (*Process, error) {
	p := &Process{done: make(chan struct{}), cmd: &exec.Cmd{
		Path:        "./" + Program,
		Args:        []string{"husk-oom", strconv.FormatInt(bytes, 10)},
		Env:         launch.Environment(launch.Hog),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}}
	ready, says, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start memory hog: %w", err)
	}
	defer ready.Close()
	hears, goes, err := os.Pipe()
	if err != nil {
		says.Close()
		return nil, fmt.Errorf("start memory hog: %w", err)
	}
	p.goes = goes
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = hears, says, says
	err = p.startIn(program)
	hears.Close()
	says.Close()
	if err == nil {
		_ = ready.SetReadDeadline(time.Now().Add(lifetime))
		var line string
		if line, err = bufio.NewReader(ready).ReadString('\n'); err == nil && line != readyLine {
			err = fmt.Errorf("%q", line)
		}
		if err != nil {
			p.End()
		}
	}
	if err != nil {
		goes.Close()
		return nil, fmt.Errorf("start memory hog: %w", err)
	}
	return p, nil
}

const readyLine = "ready\n"

// startIn starts the hog from a thread whose working directory is dir. The parent-death signal
// is bound to that thread, so the thread waits for the hog and ends with it.
func (p *Process) startIn(dir *os.File) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Fchdir(int(dir.Fd()))
		}
		if err == nil {
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // it was killed
			close(p.done)
		}
	}()
	return <-started
}

// Go makes the hog use memory, and waits until it has ended, which takes at most its lifetime.
func (p *Process) Go() error {
	if _, err := p.goes.Write([]byte{'g'}); err != nil {
		p.End()
		return fmt.Errorf("let memory hog go: %w", err)
	}
	select {
	case <-p.done:
	case <-time.After(2 * lifetime):
	}
	p.End()
	return nil
}

// End kills the hog and waits until it has ended.
func (p *Process) End() {
	_ = p.goes.Close()
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// chunk is how much memory is allocated at a time, in bytes.
const chunk = 1 << 20

// Main is the main function of husk in the role of hog.
func Main() int {
	if err := run(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("memory hog: %d arguments", len(os.Args))
	}
	bytes, err := strconv.ParseInt(os.Args[1], 10, 64)
	if err != nil {
		return fmt.Errorf("memory hog: %w", err)
	}
	if _, err := os.Stdout.WriteString(readyLine); err != nil {
		return err
	}
	if n, err := os.Stdin.Read(make([]byte, 1)); n == 0 {
		return err // the supervisor has given up
	}
	if err := killAfter(lifetime); err != nil {
		return fmt.Errorf("memory hog: %w", err)
	}
	for taken := int64(0); taken < bytes; taken += chunk {
		m, err := unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return fmt.Errorf("memory hog: %w", err)
		}
		for i := 0; i < len(m); i += os.Getpagesize() {
			m[i] = 1
		}
	}
	return nil
}

// killAfter makes the kernel send SIGKILL to this process. Without memory not even a signal
// handler runs.
func killAfter(d time.Duration) error {
	const sigevSignal = 0 // SIGEV_SIGNAL
	// struct sigevent has 64 bytes.
	event := struct {
		value  uint64
		signal int32
		notify int32
		_      [48]byte
	}{signal: int32(unix.SIGKILL), notify: sigevSignal}
	var timer int32
	if _, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC,
		uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&timer))); errno != 0 {
		return os.NewSyscallError("timer_create", errno)
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(d.Nanoseconds())}
	if _, _, errno := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(timer), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		return os.NewSyscallError("timer_settime", errno)
	}
	return nil
}
