// Package execprocess is the process on the host that stands for one exec'd process: engines
// know its pid, it owns the stdio, and it exits with the process's exit code. It runs in the
// supervisor's namespaces and asks the supervisor for everything else.
package execprocess

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/privileges"
	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/linux/syscalls"
	"github.com/huskvm/husk/protocol"
)

// Bootstrap is what an exec process is told.
type Bootstrap struct {
	StateDir      string
	ContainerID   string
	SupervisorPID int    // in the cli's pid namespace
	Process       []byte // JSON of a runtime-spec Process
	Self          state.Process
	Terminal      bool
	ConsoleSize   *specs.Box
	IgnorePaused  bool
	Detach        bool // only an engine waits for this process
	BareNewlines  bool // its terminal does not write \r\n for \n
	// Descriptors are as in supervisor.Bootstrap.
	Descriptors []byte `json:",omitempty"`
}

// exitSetup is the exit code of an exec process whose process never ran. runc has the same.
const exitSetup = 255

// exitLost is its exit code when the supervisor has gone: for a caller that waits, the process
// was killed.
const exitLost = 128 + int(unix.SIGKILL)

type execProcess struct {
	boot       Bootstrap
	supervisor *control.Client
	processID  string
	pty        *stdio.PTY
	relay      *stdio.Relay
}

// Main is the main function of husk in the role of exec process. It is called on the main
// thread and returns the exit code.
func Main() int {
	e := &execProcess{}
	parent, err := launch.Receive(&e.boot)
	if err != nil {
		// Nobody can be told, because the process that started this one has closed the
		// connection.
		return exitSetup
	}
	if err := e.start(parent); err != nil {
		_ = parent.Report(launch.Report{Error: err.Error()})
		return exitSetup
	}
	exit := e.wait()
	if err := parent.Report(launch.Report{}); err != nil {
		return exitLost
	}
	var code int
	select {
	case <-parent.Gone():
		if parent.Abandoned() {
			// When this process ends, its connection to the supervisor ends, and the supervisor
			// kills the process in the guest.
			return exitLost
		}
		code = <-exit
	case code = <-exit:
		// Until the cli has committed, this process must go on.
		<-parent.Gone()
	}
	return code
}

func (e *execProcess) start(parent *launch.Parent) error {
	console := parent.Console()
	dir, err := state.OpenDetached(e.boot.StateDir)
	if err != nil {
		return err
	}
	if e.supervisor, err = control.Connect(dir); err != nil {
		return err
	}
	if e.boot.Terminal {
		if console == nil {
			return fmt.Errorf("open terminal: no console socket was passed")
		}
		if e.pty, err = stdio.OpenPTY(console, e.boot.ConsoleSize); err != nil {
			return err
		}
	}
	ctx, cancel := context.Background(), func() {}
	if !e.boot.IgnorePaused { // it would wait until the container is resumed
		ctx, cancel = context.WithTimeout(ctx, control.AnswerTimeout)
	}
	defer cancel()
	resp, err := e.supervisor.Exec(ctx, &control.ExecRequest{
		Process: e.boot.Process, HostPid: int32(e.boot.Self.PID),
		IgnorePaused: e.boot.IgnorePaused, BareNewlines: e.boot.BareNewlines,
		Descriptors: e.boot.Descriptors,
	})
	if err := executed(ctx, err, e.boot.SupervisorPID); err != nil {
		return err
	}
	e.processID = resp.ProcessId
	passed := stdio.Passed(parent, e.boot.Descriptors)
	if e.pty != nil {
		e.relay, err = stdio.Terminal(ctx, e.dial, e.pty, passed)
	} else {
		e.relay, err = pipes(ctx, e.dial, passed)
	}
	if err != nil {
		return err
	}
	stdio.Forward(e.forward, e.followSize())
	if err := enterMounts(e.boot.SupervisorPID); err != nil {
		return err
	}
	// From here on this process copies between open descriptors. It needs the directory again
	// only if it is detached: then it passes the rest of its output to the supervisor over a
	// socket there.
	if !e.boot.Detach {
		dir.Close()
	}
	if err := privileges.Drop(privileges.Kept{}); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	return nil
}

// executed returns the error that explains why the supervisor has executed nothing, or nil if
// err is nil. A deadline that has passed is not enough for an error, because it may pass after
// the answer has come.
func executed(ctx context.Context, err error, supervisorPID int) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the supervisor has not answered within %s (process %d): husk delete --force ends it", control.AnswerTimeout, supervisorPID)
	}
	return control.Error(err)
}

func pipes(ctx context.Context, dial stdio.Dial, passed []stdio.Descriptor) (*stdio.Relay, error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	return stdio.Pipes(ctx, dial, null, passed)
}

func (e *execProcess) dial(_ context.Context, kind protocol.StreamKind, number byte) (stdio.Stream, error) {
	s, err := e.supervisor.Stream(protocol.StreamHeader{
		Kind: kind, ContainerID: e.boot.ContainerID, ProcessID: e.processID, Number: number,
	})
	if err != nil {
		return nil, err // a nil *net.UnixConn in a stdio.Stream would not equal nil
	}
	return s, nil
}

// wait returns a channel for the exit code, which is sent when the process has ended and its
// output is written.
func (e *execProcess) wait() <-chan int {
	ch := make(chan int, 1)
	go func() {
		resp, err := e.supervisor.Wait(context.Background(), &control.WaitRequest{ProcessId: e.processID})
		if err != nil {
			ch <- exitLost
			return
		}
		e.finish(resp.Held)
		ch <- int(resp.ExitCode)
	}()
	return ch
}

// finish returns when this process may end: everything that its process has written is written.
// Output of other processes that comes later is, as with runc, waited for in the foreground. A
// detached exec process ends at once, because engines wait for that, and the supervisor goes on
// with the output.
func (e *execProcess) finish(held []*control.HeldOutput) {
	if !e.boot.Detach {
		<-e.relay.Done()
		return
	}
	all := make([]stdio.Held, 0, len(held))
	for _, h := range held {
		all = append(all, stdio.Held{Kind: protocol.StreamKind(h.Kind), Number: byte(h.Number), Carried: h.Carried})
	}
	e.relay.Settle(all)
	// An output that nobody can go on with ends here.
	_ = e.relay.HandOver(func(from stdio.Stream, to *os.File) error {
		stream, ok := from.(*net.UnixConn)
		if !ok {
			return fmt.Errorf("hand over a stream: a %T", from)
		}
		return e.supervisor.Rest(protocol.StreamHeader{ContainerID: e.boot.ContainerID, ProcessID: e.processID}, stream, to)
	})
}

func (e *execProcess) forward(sig unix.Signal) {
	ctx, cancel := context.WithTimeout(context.Background(), control.AnswerTimeout)
	defer cancel()
	// The process may have ended meanwhile; its exit code follows.
	_, _ = e.supervisor.Kill(ctx, &control.KillRequest{Signal: uint32(sig), ProcessId: e.processID})
}

func (e *execProcess) followSize() func() {
	if e.pty == nil {
		return nil
	}
	follow := func() {
		rows, columns, err := e.pty.Size()
		if err != nil || rows == 0 || columns == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), control.AnswerTimeout)
		defer cancel()
		// An error is ignored: the size is sent again at the next change.
		_, _ = e.supervisor.Resize(ctx, &control.ResizeRequest{
			ProcessId: e.processID, Rows: rows, Columns: columns,
		})
	}
	follow()
	return follow
}

// enterMounts moves the main thread, which /proc/PID shows, into the supervisor's mount
// namespace and root. After it nothing may be opened by path. Other threads of Go's runtime
// stay behind; Go starts no thread from one to which a goroutine is locked.
func enterMounts(supervisorPID int) error {
	if err := enterMountsOf("/proc/" + strconv.Itoa(supervisorPID)); err != nil {
		return fmt.Errorf("enter the container's mounts: %w", err)
	}
	return nil
}

func enterMountsOf(proc string) error {
	ns, err := os.Open(proc + "/ns/mnt")
	if err != nil {
		return err
	}
	defer ns.Close()
	root, err := os.OpenFile(proc+"/root", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := syscalls.JoinNamespaces(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	return os.NewSyscallError("chroot", unix.Chroot("."))
}
