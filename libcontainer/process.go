package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRunning is returned if the process, or the first process of the container, has ended.
var ErrNotRunning = errors.New("container not running")

// Process is one process of a container, from Create or Exec. All methods may be called by many
// goroutines at once.
type Process struct {
	// The parent's ends of the process's stdio. The caller uses and closes them. Without a
	// terminal Stdin, Stdout and Stderr are pipes and Console is nil; with a terminal Console
	// is the pty's master and the three are nil.
	Stdin, Stdout, Stderr *os.File
	Console               *os.File

	proc *os.Process
	conn *conn // to the init stage, until execve

	forked   time.Time
	executed atomic.Pointer[time.Time] // when the program was executed; nil before

	done   chan struct{} // closed when status and err are set
	status ExitStatus
	err    error
}

// ExitStatus says how a process ended.
type ExitStatus struct {
	Code int // exit code, 0 to 255; 128+n if signal n killed the process
	// OOMKilled: the kernel has killed a process of the container, not necessarily this one,
	// because memory was short.
	OOMKilled bool
}

// Forked returns the time at which the process was forked.
func (p *Process) Forked() time.Time { return p.forked }

// PID returns the process's pid in the caller's pid namespace.
func (p *Process) PID() int { return p.proc.Pid }

// Signal sends a signal. It returns ErrNotRunning if the process has ended.
func (p *Process) Signal(sig unix.Signal) error {
	err := p.proc.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("unable to signal process: %w", err)
	}
	return nil
}

// Resize sets the terminal's size, in characters. It returns an error if the process has no
// terminal.
func (p *Process) Resize(rows, cols uint16) error {
	if p.Console == nil {
		return errors.New("resize terminal: the process has none")
	}
	raw, err := p.Console.SyscallConn()
	if err == nil {
		ctlErr := raw.Control(func(fd uintptr) {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
		})
		err = errors.Join(ctlErr, err)
	}
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// Wait waits until the process has ended. Any number of callers may wait.
func (p *Process) Wait() (ExitStatus, error) {
	<-p.done
	return p.status, p.err
}

// CloseIO closes Stdin, Stdout, Stderr and Console.
func (p *Process) CloseIO() {
	for _, f := range []*os.File{p.Stdin, p.Stdout, p.Stderr, p.Console} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// reap waits for the process to end. It runs once for each process.
func (p *Process) reap(oomKilled func() bool) {
	defer close(p.done)
	st, err := p.proc.Wait()
	if err != nil {
		p.err = fmt.Errorf("wait for process %d: %w", p.proc.Pid, err)
		return
	}
	if ws, ok := st.Sys().(syscall.WaitStatus); ok {
		p.status.Code = ws.ExitStatus()
		if ws.Signaled() {
			p.status.Code = 128 + int(ws.Signal())
		}
	}
	p.status.OOMKilled = oomKilled()
}

func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// abandon kills a process that failed before it executed its program.
func (p *Process) abandon() {
	_ = p.proc.Kill()
	<-p.done
	p.conn.close()
	p.CloseIO()
}

// handshake sends the stage its configuration and returns when the stage is ready to execute
// its program.
func (p *Process) handshake(cfg *initConfig) error {
	if adj := cfg.Process.OOMScoreAdj; adj != nil {
		// The parent writes this file, as it sets the limits below, because the stage may not
		// have the rights.
		err := os.WriteFile(procFile(p.proc.Pid, "oom_score_adj"), fmt.Appendf(nil, "%d", *adj), 0)
		if err != nil {
			return fmt.Errorf("set oom_score_adj: %w", err)
		}
	}
	// EPIPE means that the stage has ended early. It has sent a frame that says why.
	if err := writeConfig(p.conn.f, cfg); err != nil && !errors.Is(err, unix.EPIPE) {
		return err
	}
	for {
		f, err := p.conn.next()
		if err != nil {
			return p.died(err)
		}
		switch {
		case f.kind == frameError:
			return errors.New(f.text)
		case f.kind == frameConsole && f.file != nil:
			p.Console = f.file
		case f.kind == frameReady:
			return setRlimits(p.proc.Pid, cfg.Process.Rlimits)
		default:
			return fmt.Errorf("read message of init stage: unknown kind %q", f.kind)
		}
	}
}

// died returns the error for a stage that ended without a frame.
func (p *Process) died(cause error) error {
	_ = p.proc.Kill()
	<-p.done
	switch {
	case p.err != nil:
		return p.err
	case p.status.OOMKilled:
		return errors.New("container init was OOM-killed (memory limit too low?)")
	}
	return fmt.Errorf("init stage ended with exit code %d before it was ready: %w", p.status.Code, cause)
}

// setRlimits sets the limits of the process pid. It is called last and from outside, because a
// limit may be too low for the init stage to go on.
func setRlimits(pid int, limits []rlimitConfig) error {
	for _, l := range limits {
		if err := unix.Prlimit(pid, l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil); err != nil {
			return fmt.Errorf("error setting rlimit type %d: %w", l.Resource, err)
		}
	}
	return nil
}

// release lets the stage execute its program and returns when it has.
func (p *Process) release() error {
	defer p.conn.close()
	if _, err := p.conn.f.Write([]byte{releaseByte}); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("release init stage: %w", err)
	}
	// The stage's end of the socket closes at execve.
	if f, err := p.conn.next(); err == nil {
		<-p.done
		return errors.New(f.text)
	}
	now := time.Now()
	p.executed.Store(&now)
	return nil
}
