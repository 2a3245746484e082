// Package caller is about what is between husk's caller and a process of a container: what the
// process inherits from the caller (limits, descriptors, a terminal), what the caller learns
// about the process (pid file, pidfd), and waiting in the foreground until the process ends.
package caller

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// Foreground is what the cli does while it waits for a process: it forwards signals and, if the
// process has a terminal, copies between that and its own.
type Foreground struct {
	ours, theirs *os.File // ends of a socket pair that receives the console
	terminal     console.Console
	master       console.Console
	copied       chan struct{} // closed when the terminal's output has ended
}

// NewForeground prepares for a process with or without a terminal. With detach nothing of it is
// used.
func NewForeground(detach bool) (*Foreground, error) {
	fg := &Foreground{}
	if detach {
		return fg, nil
	}
	var err error
	if fg.ours, fg.theirs, err = syscalls.SocketPair("console"); err != nil {
		return nil, fmt.Errorf("create console socket: %w", err)
	}
	return fg, nil
}

// Socket returns the end for the child; nil if the cli detaches.
func (fg *Foreground) Socket() *os.File { return fg.theirs }

// Attach starts forwarding the cli's signals to the process, and takes over its terminal if it
// has one.
func (fg *Foreground) Attach(p *os.Process, terminal bool) error {
	fg.forwardTo(p)
	if !terminal {
		return nil
	}
	return fg.takeTerminal()
}

// takeTerminal receives the pty's master and connects it with the cli's own terminal, which is
// raw until Close.
func (fg *Foreground) takeTerminal() error {
	fg.theirs.Close()
	master, err := receiveFD(fg.ours)
	if err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	if fg.master, err = console.ConsoleFromFile(master); err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	// Without a terminal of its own the cli copies plain streams.
	if fg.terminal, err = console.ConsoleFromFile(os.Stdin); err == nil {
		if err := fg.terminal.SetRaw(); err != nil {
			return fmt.Errorf("set terminal raw: %w", err)
		}
		// SetRaw still writes \r\n for \n. The guest's terminal, like runc's, does not, so that
		// output that is read without a terminal has no \r. Setting the size fails on some
		// devices that only look like terminals.
		_ = fg.master.ResizeFrom(fg.terminal)
	} else {
		fg.terminal = nil
	}
	fg.copied = make(chan struct{})
	// Input that the process no longer reads is lost.
	go func() { _, _ = io.Copy(fg.master, os.Stdin) }()
	go func() {
		defer close(fg.copied)
		// EIO means that the other end of the pty is closed.
		_, _ = io.Copy(os.Stdout, fg.master)
	}()
	return nil
}

// receiveFD returns the one descriptor of a message on a console socket.
func receiveFD(socket *os.File) (*os.File, error) {
	const maxName = 4096
	name := make([]byte, maxName)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if len(msgs) != 1 {
		return nil, errors.New("no descriptor came")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		return nil, errors.New("not exactly one descriptor came")
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}

// forwardTo forwards the cli's signals to the process, which forwards them to the guest. On
// SIGWINCH it changes the size of the terminal instead.
func (fg *Foreground) forwardTo(p *os.Process) {
	ch := make(chan os.Signal, 64)
	signal.Notify(ch)
	go func() {
		for s := range ch {
			switch s {
			case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE:
				// These are about this process, not for the container.
			case unix.SIGWINCH:
				if fg.terminal != nil {
					_ = fg.master.ResizeFrom(fg.terminal)
				}
			default:
				// It may have ended just now; its exit code follows.
				_ = p.Signal(s)
			}
		}
	}()
}

// Wait returns the process's exit code when its terminal's output is written.
func (fg *Foreground) Wait(p *os.Process) (int, error) {
	st, err := p.Wait()
	if err != nil {
		return 0, fmt.Errorf("wait for container: %w", err)
	}
	if fg.copied != nil {
		<-fg.copied
	}
	return exitCode(st), nil
}

// Close restores the cli's terminal.
func (fg *Foreground) Close() {
	if fg.terminal != nil {
		// An error means that the terminal is gone.
		_ = fg.terminal.Reset()
	}
	for _, f := range []*os.File{fg.ours, fg.theirs} {
		if f != nil {
			f.Close()
		}
	}
}

// exitCode returns the code that a shell would give: 128+n after signal n.
func exitCode(st *os.ProcessState) int {
	if ws, ok := st.Sys().(unix.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return st.ExitCode()
}
