package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
)

// fakeSupervisor answers verbs in a container's state directory without a container. It notes
// what it was asked, and answers as the test says.
type fakeSupervisor struct {
	control.SupervisorService // nil: a call that a test does not expect panics

	mu      sync.Mutex
	calls   []string
	updates []string
	stats   string
	pids    []int32
	kills   chan uint64 // answers of AwaitOOM, one after the other; nil: none
	err     error
	killed  func()        // called by Kill
	left    chan struct{} // one value for each closed connection
}

// leaving is a listener that reports when its connections are closed.
type leaving struct {
	net.Listener
	left chan<- struct{}
}

func (l *leaving) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &leavingConn{Conn: c, leave: sync.OnceFunc(func() { l.left <- struct{}{} })}, nil
}

type leavingConn struct {
	net.Conn
	leave func()
}

func (c *leavingConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

func (f *fakeSupervisor) Kill(context.Context, *control.KillRequest) (*control.KillResponse, error) {
	err := f.note("kill")
	if f.killed != nil {
		f.killed()
	}
	return &control.KillResponse{}, err
}

func (f *fakeSupervisor) note(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	return f.err
}

func (f *fakeSupervisor) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

func (f *fakeSupervisor) Pause(context.Context, *control.PauseRequest) (*control.PauseResponse, error) {
	return &control.PauseResponse{}, f.note("pause")
}

func (f *fakeSupervisor) Resume(context.Context, *control.ResumeRequest) (*control.ResumeResponse, error) {
	return &control.ResumeResponse{}, f.note("resume")
}

func (f *fakeSupervisor) Update(_ context.Context, req *control.UpdateRequest) (*control.UpdateResponse, error) {
	err := f.note("update")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.updates = append(f.updates, string(req.Resources))
	return &control.UpdateResponse{}, err
}

func (f *fakeSupervisor) AwaitOOM(ctx context.Context, _ *control.AwaitOOMRequest) (*control.AwaitOOMResponse, error) {
	select {
	case kills := <-f.kills:
		return &control.AwaitOOMResponse{Kills: kills}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fakeSupervisor) Stats(context.Context, *control.StatsRequest) (*control.StatsResponse, error) {
	err := f.note("stats")
	return &control.StatsResponse{Stats: []byte(f.stats)}, err
}

func (f *fakeSupervisor) Ps(context.Context, *control.PsRequest) (*control.PsResponse, error) {
	err := f.note("ps")
	return &control.PsResponse{HostPids: f.pids}, err
}

// fakeContainer is a container in a state root of the test, whose supervisor is the given
// process.
type fakeContainer struct {
	*fakeSupervisor
	root string
	dir  *state.Dir
	data *state.Container
	end  func() // ends what the supervisor serves, as at its own end
}

func newFakeContainer(t *testing.T, status state.Status, hostPID int) *fakeContainer {
	t.Helper()
	process, err := state.ProcessOf(hostPID)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeContainer{
		fakeSupervisor: &fakeSupervisor{left: make(chan struct{}, 100)}, root: t.TempDir(),
		data: &state.Container{
			OCIVersion: "1.3.0", ID: "c1", Bundle: "/bundle", Rootfs: "/bundle/rootfs", Owner: "root",
			Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Saved: status, Supervisor: process,
		},
	}
	if f.dir, err = state.Create(f.root, f.data); err != nil {
		t.Fatal(err)
	}
	f.dir.Unlock() // as at the end of create
	t.Cleanup(f.dir.Close)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: f.dir.FDPath(state.ControlSocket)})
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	control.RegisterSupervisorService(server, f.fakeSupervisor)
	f.end = func() { server.Close() }
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), &leaving{l, f.left}) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-served; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return f
}

// runningContainer returns a container whose supervisor is the test itself.
func runningContainer(t *testing.T) *fakeContainer {
	t.Helper()
	return newFakeContainer(t, state.Running, os.Getpid())
}

// stoppedContainer returns a container whose supervisor has ended, whatever its file says.
func stoppedContainer(t *testing.T) *fakeContainer {
	t.Helper()
	f := runningContainer(t)
	f.data.Supervisor.StartTime++
	f.save(t, state.Running)
	return f
}

func (f *fakeContainer) save(t *testing.T, status state.Status) {
	t.Helper()
	f.data.Saved = status
	if err := f.dir.Save(f.data); err != nil {
		t.Fatal(err)
	}
}

// husk runs the cli in this process and returns its stdout.
func (f *fakeContainer) husk(args ...string) (string, error) { return husk(f.root, args...) }

func husk(root string, args ...string) (string, error) {
	var stdout bytes.Buffer
	app := newApp()
	app.Writer = &stdout
	err := app.Run(append([]string{"husk", "--root", root}, args...))
	return stdout.String(), err
}

// startProcess starts a process that stands for a supervisor.
func startProcess(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

func wantError(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || err.Error() != text {
		t.Errorf("error %v, want %q", err, text)
	}
}
