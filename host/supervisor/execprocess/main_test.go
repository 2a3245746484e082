package execprocess

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/state/statetest"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/launch/launchtest"
	"github.com/huskvm/husk/protocol"
)

const patience = time.Minute

// As husk's own main does it: see launch.Start.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if launch.CurrentRole() == launch.Exec {
		os.Exit(Main())
	}
	os.Exit(m.Run())
}

// supervisor has one exec'd process, which writes its stdin to its stdout and then exits.
type supervisor struct {
	control.SupervisorService // nil: a call that a test does not expect panics

	refuses error
	code    uint32
	stop    context.CancelFunc // the supervisor's end

	signals chan uint32 // that a process was sent

	echoed chan struct{} // closed when stdin has ended
}

func (s *supervisor) Exec(_ context.Context, r *control.ExecRequest) (*control.ExecResponse, error) {
	if s.refuses != nil {
		return nil, s.refuses
	}
	if string(r.Process) != `{"args":["cat"]}` || r.HostPid != 5 {
		return nil, fmt.Errorf("asked for %s by process %d", r.Process, r.HostPid)
	}
	return &control.ExecResponse{ProcessId: "exec-1"}, nil
}

func (s *supervisor) Wait(ctx context.Context, r *control.WaitRequest) (*control.WaitResponse, error) {
	if r.ProcessId != "exec-1" {
		return nil, errors.New("no such process")
	}
	select {
	case <-s.echoed:
		return &control.WaitResponse{ExitCode: s.code}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *supervisor) Kill(_ context.Context, r *control.KillRequest) (*control.KillResponse, error) {
	s.signals <- r.Signal
	return &control.KillResponse{}, nil
}

// serve serves both sockets in a container's directory, which it returns.
func (s *supervisor) serve(t *testing.T) *state.Dir {
	t.Helper()
	dir, calls, streams := statetest.Listening(t)
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	control.RegisterSupervisorService(server, s)
	s.stop = func() { _ = server.Close() }
	t.Cleanup(s.stop)
	go func() { _ = server.Serve(context.Background(), calls) }()
	text, in := io.Pipe()
	go statetest.Accept(streams, func(conn net.Conn) { s.stream(conn.(*net.UnixConn), text, in) })
	return dir
}

func (s *supervisor) stream(conn *net.UnixConn, text io.Reader, in *io.PipeWriter) {
	defer conn.Close()
	h, err := protocol.ReadStreamHeader(conn)
	if err == nil && (h.ContainerID != "c1" || h.ProcessID != "exec-1") {
		err = errors.New("another's stream")
	}
	if protocol.WriteStreamAck(conn, err) != nil || err != nil {
		return
	}
	switch h.Kind {
	case protocol.StreamStdin:
		_, _ = io.Copy(in, conn)
		_ = in.Close()
		close(s.echoed)
	case protocol.StreamStdout:
		_, _ = io.Copy(conn, text)
	}
}

// started is an exec process with its stdin and stdout.
func started(t *testing.T, s *supervisor) (child *launch.Child, stdin, stdout *os.File) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("an exec process enters a mount namespace and drops privileges, which needs root")
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno == unix.ENOTSUP {
		t.Skip("with cgo, which the race detector brings, nothing can be done for all threads")
	}
	s.echoed = make(chan struct{})
	s.signals = make(chan uint32, 16)
	dir := s.serve(t)
	theirs, stdin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	stdout, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	t.Cleanup(func() { stdin.Close(); stdout.Close() })
	child, err = launch.Start(launch.Options{Role: launch.Exec, Args: []string{"cat"}, Stdin: theirs, Stdout: out, Stderr: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	err = child.Bootstrap(Bootstrap{
		StateDir: dir.Path, ContainerID: "c1", SupervisorPID: os.Getpid(),
		Process: []byte(`{"args":["cat"]}`), Self: state.Process{PID: 5},
	})
	if err != nil {
		t.Fatal(err)
	}
	return child, stdin, stdout
}

// What is read and written, its signals and its exit code are those of the process.
func TestExecProcess(t *testing.T) {
	s := &supervisor{code: 7}
	child, stdin, stdout := started(t, s)
	if _, err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := child.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-s.signals:
		if got != uint32(unix.SIGUSR1) {
			t.Errorf("the process hears of signal %d", got)
		}
	case <-time.After(patience):
		t.Fatal("the signal has not reached the process")
	}
	if _, err := io.WriteString(stdin, "text"); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	if err := child.Commit(); err != nil {
		t.Fatal(err)
	}
	launchtest.WantExit(t, child, 7)
	if b, err := io.ReadAll(stdout); err != nil || string(b) != "text" {
		t.Errorf("it has written %q, %v", b, err)
	}
}

func TestExecThatIsRefused(t *testing.T) {
	child, _, _ := started(t, &supervisor{refuses: errors.New("cannot exec in a stopped container")})
	if _, err := child.Wait(); err == nil || !strings.Contains(err.Error(), "cannot exec in a stopped container") {
		t.Errorf("report: %v", err)
	}
	launchtest.WantExit(t, child, exitSetup)
}

// To whoever waits, the process of a supervisor that has gone was killed.
func TestExecWhoseSupervisorEnds(t *testing.T) {
	s := &supervisor{}
	child, _, _ := started(t, s)
	if _, err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := child.Commit(); err != nil {
		t.Fatal(err)
	}
	s.stop()
	launchtest.WantExit(t, child, exitLost)
}
