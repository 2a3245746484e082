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

// ErrNotRunning says that the process, or the container's first one, has ended.
var ErrNotRunning = errors.New("container not running")

// Process is one process of a container, from Create or Exec. It is safe for
// use by many goroutines.
type Process struct {
	// The parent's ends of the process's stdio, for the caller to use and close.
	// Without a terminal these three are pipes and Console is nil; with one it is
	// the pty's master, and they are nil.
	Stdin, Stdout, Stderr *os.File
	Console               *os.File

	proc *os.Process
	conn *conn // to the init stage, until execve

	forked   time.Time
	executed atomic.Pointer[time.Time] // when the program was, nil before

	done   chan struct{} // closed when status and err are set
	status ExitStatus
	err    error
}

// ExitStatus is how a process ended.
type ExitStatus struct {
	Code int // 0 to 255; 128+n after signal n
	// OOMKilled says that the kernel has killed a process of the container, this
	// or another, for want of memory.
	OOMKilled bool
}

// Forked is when the process was forked.
func (p *Process) Forked() time.Time { return p.forked }

// PID is the process's number in the caller's pid namespace.
func (p *Process) PID() int { return p.proc.Pid }

// Signal sends a signal; ErrNotRunning if the process has ended.
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

// Resize sets the terminal's size, in characters.
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

// Wait returns when the process has ended. Any number of callers may wait.
func (p *Process) Wait() (ExitStatus, error) {
	<-p.done
	return p.status, p.err
}

// CloseIO closes the parent's ends of the process's stdio.
func (p *Process) CloseIO() {
	for _, f := range []*os.File{p.Stdin, p.Stdout, p.Stderr, p.Console} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// reap waits for the process; it is run once for each.
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

// abandon ends a process that did not become what it should have.
func (p *Process) abandon() {
	_ = p.proc.Kill()
	<-p.done
	p.conn.close()
	p.CloseIO()
}

// handshake gives the stage its configuration and returns when it is ready for
// execve.
func (p *Process) handshake(cfg *initConfig) error {
	if adj := cfg.Process.OOMScoreAdj; adj != nil {
		// From outside, as the limits below: the stage may have fewer rights.
		err := os.WriteFile(procFile(p.proc.Pid, "oom_score_adj"), fmt.Appendf(nil, "%d", *adj), 0)
		if err != nil {
			return fmt.Errorf("set oom_score_adj: %w", err)
		}
	}
	// The pipe breaks when the stage ends early, and then it has said why.
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

// died explains a stage that ended without a word.
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

// setRlimits comes last and from outside: a limit meant for the process may be
// too tight for the stage to go on with.
func setRlimits(pid int, limits []rlimitConfig) error {
	for _, l := range limits {
		if err := unix.Prlimit(pid, l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil); err != nil {
			return fmt.Errorf("error setting rlimit type %d: %w", l.Resource, err)
		}
	}
	return nil
}

// release lets the stage go into execve and returns when it has.
func (p *Process) release() error {
	defer p.conn.close()
	if _, err := p.conn.f.Write([]byte{releaseByte}); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("release init stage: %w", err)
	}
	// Its end of the socket closes at execve.
	if f, err := p.conn.next(); err == nil {
		<-p.done
		return errors.New(f.text)
	}
	now := time.Now()
	p.executed.Store(&now)
	return nil
}
