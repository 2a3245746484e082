package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/huskvm/husk/libcontainer"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client"
	"github.com/huskvm/husk/protocol/mux"
)

// These tests serve the agent's service in this process. libcontainer makes real containers on
// this kernel, so everything but the VM is tested. The test binary is the init stage as well.
func TestMain(m *testing.M) {
	if libcontainer.IsInit() {
		libcontainer.InitStage()
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// served returns a client of an agent that runs in this process.
func served(t *testing.T) (*client.Client, *agent) {
	t.Helper()
	h, g := pair(t)
	a, err := newAgent(machine{
		setClock:   func(int64) error { return nil },
		addEntropy: func([]byte) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := protocol.Answer(g, build, func(protocol.Offer) error { return nil }); err != nil {
			return
		}
		session, err := mux.Guest(g)
		if err != nil {
			return
		}
		_ = a.serve(session)
	}()
	c, err := client.Connect(within(t, patience), client.Serial(h), build)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		select {
		case <-over:
		case <-time.After(patience):
			t.Error("the agent goes on serving a channel that has ended")
		}
	})
	return c, a
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestHello(t *testing.T) {
	c, _ := served(t)
	h, err := c.Control().Hello(within(t, patience), &protocol.HelloRequest{Entropy: make([]byte, 32), UnixNanos: 1})
	if err != nil {
		t.Fatal(err)
	}
	if h.KernelRelease == "" {
		t.Errorf("hello answers %v", h)
	}
	if _, err := c.Control().Hello(within(t, patience), &protocol.HelloRequest{Entropy: make([]byte, 31)}); err == nil {
		t.Error("31 bytes of entropy were accepted")
	}
}

func TestUnknownContainer(t *testing.T) {
	c, _ := served(t)
	ctx := within(t, patience)
	for name, call := range map[string]func() error{
		"start":  func() error { _, err := c.Control().Start(ctx, &protocol.StartRequest{ContainerId: "x"}); return err },
		"exec":   func() error { _, err := c.Control().Exec(ctx, &protocol.ExecRequest{ContainerId: "x"}); return err },
		"wait":   func() error { _, err := c.Control().Wait(ctx, &protocol.WaitRequest{ContainerId: "x"}); return err },
		"kill":   func() error { _, err := c.Control().Kill(ctx, &protocol.KillRequest{ContainerId: "x"}); return err },
		"stats":  func() error { _, err := c.Control().Stats(ctx, &protocol.StatsRequest{ContainerId: "x"}); return err },
		"resize": func() error { _, err := c.Control().Resize(ctx, &protocol.ResizeRequest{ContainerId: "x"}); return err },
	} {
		var agentErr *client.AgentError
		if err := call(); !errors.As(err, &agentErr) || agentErr.Code != codes.NotFound {
			t.Errorf("%s: %v, want not found", name, err)
		}
	}
	_, err := c.Stream(ctx, protocol.StreamHeader{Kind: protocol.StreamStdin, ContainerID: "x", ProcessID: "init"})
	if err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("stream: %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	c, _ := served(t)
	for name, r := range map[string]*protocol.CreateRequest{
		"no id":          {Spec: []byte("{}")},
		"path":           {ContainerId: "../x", Spec: []byte("{}")},
		"dot":            {ContainerId: "..", Spec: []byte("{}")},
		"spec":           {ContainerId: "x", Spec: []byte("{")},
		"relative share": {ContainerId: "x", Spec: []byte("{}"), Share: &protocol.Share{GuestDir: "x"}},
	} {
		if _, err := c.Control().Create(within(t, patience), r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// testContainer is a busybox container that has been made and not started.
type testContainer struct {
	*client.Client
	t   *testing.T
	dir string // the rootfs
}

func create(t *testing.T, args ...string) *testContainer {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make containers")
	}
	c := &testContainer{t: t, dir: t.TempDir()}
	var a *agent
	c.Client, a = served(t)
	busybox(t, c.dir)
	spec := &specs.Spec{
		Root:    &specs.Root{Path: c.dir},
		Process: processSpec(args...),
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace},
			{Type: specs.MountNamespace},
			{Type: specs.NetworkNamespace},
			{Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace},
		}},
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Control().Create(within(t, patience), &protocol.CreateRequest{ContainerId: "c", Spec: b}); err != nil {
		t.Fatal(err)
	}
	made, err := a.container("c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// By its pid, which the test sees because the process is its own child.
		_ = unix.Kill(made.c.Init().PID(), unix.SIGKILL)
	})
	return c
}

func busybox(t *testing.T, dir string) {
	t.Helper()
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("busybox-static is needed: %v", err)
	}
	for _, d := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "sleep", "true", "echo", "wc", "stty", "dd"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
}

func processSpec(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}
}

func (c *testContainer) start() {
	c.t.Helper()
	if _, err := c.Control().Start(within(c.t, patience), &protocol.StartRequest{ContainerId: "c"}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testContainer) exec(id string, p *specs.Process) {
	c.t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		c.t.Fatal(err)
	}
	r := &protocol.ExecRequest{ContainerId: "c", ProcessId: id, Process: b}
	if _, err := c.Control().Exec(within(c.t, patience), r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testContainer) stream(id string, kind protocol.StreamKind) client.Stream {
	c.t.Helper()
	s, err := c.Stream(within(c.t, patience), protocol.StreamHeader{Kind: kind, ContainerID: "c", ProcessID: id})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = s.Close() })
	return s
}

func (c *testContainer) wait(id string) uint32 {
	c.t.Helper()
	r, err := c.Control().Wait(within(c.t, patience), &protocol.WaitRequest{ContainerId: "c", ProcessId: id})
	if err != nil {
		c.t.Fatal(err)
	}
	return r.ExitCode
}

func (c *testContainer) kill(id string, sig unix.Signal) {
	c.t.Helper()
	r := &protocol.KillRequest{ContainerId: "c", ProcessId: id, Signal: uint32(sig)}
	if _, err := c.Control().Kill(within(c.t, patience), r); err != nil {
		c.t.Fatal(err)
	}
}

func TestContainerRuns(t *testing.T) {
	c := create(t, "sh", "-c", "cat; echo oops >&2; exit 7")
	stdin, stdout, stderr := c.stream("init", protocol.StreamStdin), c.stream("init", protocol.StreamStdout), c.stream("init", protocol.StreamStderr)
	c.start()
	if _, err := io.WriteString(stdin, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := stdin.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := c.wait("init"); got != 7 {
		t.Errorf("exit code %d, want 7", got)
	}
	if b, err := io.ReadAll(stdout); err != nil || string(b) != "hello" {
		t.Errorf("stdout %q, %v", b, err)
	}
	if b, err := io.ReadAll(stderr); err != nil || string(b) != "oops\n" {
		t.Errorf("stderr %q, %v", b, err)
	}
	// The exit status of the container's first process is kept for later Waits.
	if got := c.wait("init"); got != 7 {
		t.Errorf("second wait: exit code %d, want 7", got)
	}
}

func TestContainerKilled(t *testing.T) {
	c := create(t, "sleep", "1000")
	c.start()
	c.kill("init", unix.SIGKILL)
	if got := c.wait("init"); got != 128+9 {
		t.Errorf("exit code %d, want 137", got)
	}
}

func TestExec(t *testing.T) {
	c := create(t, "sleep", "1000")
	c.start()
	c.exec("e1", processSpec("sh", "-c", "echo out; exit 3"))
	stdout := c.stream("e1", protocol.StreamStdout)
	if got := c.wait("e1"); got != 3 {
		t.Errorf("exit code %d, want 3", got)
	}
	if b, err := io.ReadAll(stdout); err != nil || string(b) != "out\n" {
		t.Errorf("stdout %q, %v", b, err)
	}
	// After a Wait an exec'd process is forgotten and its id may be used again.
	var agentErr *client.AgentError
	_, err := c.Control().Wait(within(t, patience), &protocol.WaitRequest{ContainerId: "c", ProcessId: "e1"})
	if !errors.As(err, &agentErr) || agentErr.Code != codes.NotFound {
		t.Errorf("second wait: %v, want not found", err)
	}
	c.exec("e1", processSpec("sleep", "1000"))
	b, _ := json.Marshal(processSpec("true"))
	_, err = c.Control().Exec(within(t, patience), &protocol.ExecRequest{ContainerId: "c", ProcessId: "e1", Process: b})
	if !errors.As(err, &agentErr) || agentErr.Code != codes.AlreadyExists {
		t.Errorf("same id: %v, want already exists", err)
	}
	c.kill("e1", unix.SIGTERM)
	if got := c.wait("e1"); got != 128+15 {
		t.Errorf("exit code %d, want 143", got)
	}
}

// A background child of an exec'd process keeps the pipe open: Wait returns all the same, and
// what the child writes is still passed on.
func TestExecWithBackgroundChild(t *testing.T) {
	c := create(t, "sleep", "1000")
	c.start()
	c.exec("e1", processSpec("sh", "-c", "(sleep 0.5; echo late) & echo started"))
	stdout := c.stream("e1", protocol.StreamStdout)
	r, err := c.Control().Wait(within(t, patience), &protocol.WaitRequest{ContainerId: "c", ProcessId: "e1"})
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("wait: %v, %v", r, err)
	}
	const started = "started\n"
	if len(r.Held) != 1 || r.Held[0].Kind != uint32(protocol.StreamStdout) || r.Held[0].Carried != uint64(len(started)) {
		t.Errorf("held open are %v", r.Held)
	}
	if b, err := io.ReadAll(stdout); err != nil || string(b) != started+"late\n" {
		t.Errorf("stdout %q, %v", b, err)
	}
}

func TestExecTerminal(t *testing.T) {
	c := create(t, "sleep", "1000")
	c.start()
	p := processSpec("sh", "-c", "read x; stty size")
	p.Terminal = true
	c.exec("e1", p)
	r := &protocol.ResizeRequest{ContainerId: "c", ProcessId: "e1", Rows: 33, Columns: 77}
	if _, err := c.Control().Resize(within(t, patience), r); err != nil {
		t.Fatal(err)
	}
	stdin, stdout := c.stream("e1", protocol.StreamStdin), c.stream("e1", protocol.StreamStdout)
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	if got := c.wait("e1"); got != 0 {
		t.Errorf("exit code %d, want 0", got)
	}
	if b, err := io.ReadAll(stdout); err != nil || !strings.Contains(string(b), "33 77") {
		t.Errorf("stdout %q, %v", b, err)
	}
}

func TestExecErrorText(t *testing.T) {
	c := create(t, "sleep", "1000")
	c.start()
	b, _ := json.Marshal(processSpec("nonexistent"))
	_, err := c.Control().Exec(within(t, patience), &protocol.ExecRequest{ContainerId: "c", ProcessId: "e1", Process: b})
	if err == nil || !strings.Contains(err.Error(), `exec: "nonexistent": executable file not found in $PATH`) {
		t.Errorf("got %v", err)
	}
}
