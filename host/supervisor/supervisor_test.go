package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/fake"
	"github.com/huskvm/husk/protocol"
	agentfake "github.com/huskvm/husk/protocol/client/fake"
)

const (
	build    = "test-build"
	patience = time.Minute
)

// guest is an agent that notes what it is asked and does what the test says.
type guest struct {
	protocol.AgentService // nil: a call that a test does not expect panics

	mu    sync.Mutex
	calls []string
	fail  map[string]error
	exits map[string]chan uint32
	kills chan uint64 // answers of AwaitOOM, one after the other; nil: none
}

func (g *guest) note(call string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, call)
	verb, _, _ := strings.Cut(call, " ")
	return g.fail[verb]
}

func (g *guest) called() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.calls)
}

func (g *guest) Hello(context.Context, *protocol.HelloRequest) (*protocol.HelloResponse, error) {
	return &protocol.HelloResponse{KernelRelease: "6.1"}, nil
}

func (g *guest) Start(context.Context, *protocol.StartRequest) (*protocol.StartResponse, error) {
	return &protocol.StartResponse{}, g.note("start")
}

func (g *guest) AwaitOOM(ctx context.Context, r *protocol.AwaitOOMRequest) (*protocol.AwaitOOMResponse, error) {
	if g.kills == nil { // no kill will come
		<-ctx.Done()
		return nil, ctx.Err()
	}
	// It is noted before a kill is received, because the sender may look right afterwards.
	if err := g.note(fmt.Sprintf("oom after %d", r.Seen)); err != nil {
		return nil, err
	}
	select {
	case kills := <-g.kills:
		return &protocol.AwaitOOMResponse{Kills: kills}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g *guest) Pause(context.Context, *protocol.PauseRequest) (*protocol.PauseResponse, error) {
	return &protocol.PauseResponse{}, g.note("pause")
}

func (g *guest) Resume(context.Context, *protocol.ResumeRequest) (*protocol.ResumeResponse, error) {
	return &protocol.ResumeResponse{}, g.note("resume")
}

func (g *guest) Update(context.Context, *protocol.UpdateRequest) (*protocol.UpdateResponse, error) {
	return &protocol.UpdateResponse{}, g.note("update")
}

func (g *guest) Exec(_ context.Context, r *protocol.ExecRequest) (*protocol.ExecResponse, error) {
	return &protocol.ExecResponse{}, g.note("exec " + r.ProcessId)
}

func (g *guest) Kill(_ context.Context, r *protocol.KillRequest) (*protocol.KillResponse, error) {
	if err := g.note("kill " + r.ProcessId + " " + unix.SignalName(unix.Signal(r.Signal))); err != nil {
		return nil, err
	}
	if exit := g.exits[r.ProcessId]; exit != nil && unix.Signal(r.Signal) == unix.SIGKILL {
		exit <- 128 + uint32(unix.SIGKILL)
	}
	return &protocol.KillResponse{}, nil
}

func (g *guest) Wait(ctx context.Context, r *protocol.WaitRequest) (*protocol.WaitResponse, error) {
	select {
	case code := <-g.exits[r.ProcessId]:
		g.exits[r.ProcessId] <- code // for other callers that wait
		return &protocol.WaitResponse{ExitCode: code}, g.note("wait " + r.ProcessId)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g *guest) play(ctx context.Context, conn net.Conn, _ hypervisor.Config) error {
	return agentfake.Streams(conn, build, func(h protocol.StreamHeader, s net.Conn) {
		if h.Kind == protocol.StreamControl {
			_ = agentfake.Control(ctx, s, g)
			return
		}
		agentfake.Echo(s)
	})
}

// bare returns a supervisor without a machine.
func bare(t *testing.T) *supervisor {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	s := newSupervisor()
	s.id, s.log, s.parent, s.network = "c1", log, &launch.Parent{}, &machine.Network{}
	s.boot = Bootstrap{
		Build: build, Plan: &specconv.Plan{Guest: &specs.Spec{}},
		Machine:   machine.Config{MemoryMiB: 512, VCPUs: 2, BootTimeout: patience},
		Container: &state.Container{ID: "c1", Saved: state.Created},
	}
	dir, err := state.Create(t.TempDir(), s.boot.Container)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dir.Close)
	s.record = newRecord(dir, s.boot.Container, log)
	s.failed = &failed{id: s.id, log: log}
	return s
}

// met returns a supervisor whose agent has answered and whose container is created.
func met(t *testing.T, g *guest) (*supervisor, *fake.VM) {
	t.Helper()
	s := bare(t)
	starter := &fake.Starter{Guest: g.play}
	m, err := machine.Start(t.Context(), machine.Options{
		Starter: starter, Config: &s.boot.Machine, Build: build, Network: s.network, Log: s.log,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.attach(m, &hostOOM{})
	t.Cleanup(s.shutDown)
	return s, starter.VMs()[0]
}

func wantStatus(t *testing.T, s *supervisor, want state.Status) {
	t.Helper()
	saved, err := s.record.dir.Load()
	if err != nil || saved.Saved != want || s.record.status() != want {
		t.Errorf("status %s, saved %v, %v; want %s", s.record.status(), saved, err, want)
	}
}

func TestVerbsChangeTheStatus(t *testing.T) {
	g := &guest{}
	s, _ := met(t, g)
	start := func() error { _, err := s.service.Start(t.Context(), &control.StartRequest{}); return err }
	pause := func() error { _, err := s.service.Pause(t.Context(), &control.PauseRequest{}); return err }
	resume := func() error { _, err := s.service.Resume(t.Context(), &control.ResumeRequest{}); return err }
	exec := func() error { _, err := s.service.Exec(t.Context(), &control.ExecRequest{}); return err }
	for _, step := range []struct {
		name  string
		verb  func() error
		after state.Status
		text  string // text of the error
	}{
		{"resume", resume, state.Created, "container not paused"},
		{"pause", pause, state.Paused, ""},
		{"start", start, state.Paused, "cannot start a container in the paused state"},
		{"resume", resume, state.Created, ""},
		{"start", start, state.Running, ""},
		{"start", start, state.Running, "cannot start an already running container"},
		{"pause", pause, state.Paused, ""},
		{"exec", exec, state.Paused, "cannot exec in a paused container"},
		{"resume", resume, state.Running, ""},
		{"exec", exec, state.Running, ""},
	} {
		err := step.verb()
		if (err != nil) != (step.text != "") || (err != nil && !strings.Contains(err.Error(), step.text)) {
			t.Errorf("%s: error %v, want %q", step.name, err, step.text)
		}
		wantStatus(t, s, step.after)
	}
	if want := []string{"pause", "resume", "start", "pause", "resume", "exec exec-1"}; !slices.Equal(g.called(), want) {
		t.Errorf("the guest was asked for %v, want %v", g.called(), want)
	}
}

// TestRefusedByTheGuest: a status does not change if the guest refuses the change.
func TestRefusedByTheGuest(t *testing.T) {
	g := &guest{fail: map[string]error{"start": status.Error(codes.Internal, "no"), "exec": errors.New("no")}}
	s, _ := met(t, g)
	if _, err := s.service.Start(t.Context(), &control.StartRequest{}); err == nil || err.Error() != "no" {
		t.Errorf("start: %v", err)
	}
	wantStatus(t, s, state.Created)
	if _, err := s.service.Exec(t.Context(), &control.ExecRequest{HostPid: 7}); err == nil {
		t.Error("exec succeeded")
	}
	if r, err := s.service.Ps(t.Context(), nil); err != nil || len(r.HostPids) != 1 {
		t.Errorf("a process that was never made is listed: %v, %v", r, err)
	}
}

// TestKillThatTheGuestRefuses: SIGKILL works whatever the guest answers, and no other signal
// ends a virtual machine.
func TestKillThatTheGuestRefuses(t *testing.T) {
	g := &guest{fail: map[string]error{"kill": errors.New("no")}}
	s, vm := met(t, g)
	if _, err := s.service.Kill(t.Context(), &control.KillRequest{Signal: uint32(unix.SIGTERM)}); err == nil {
		t.Error("SIGTERM: no error")
	}
	if _, err := s.service.Kill(t.Context(), &control.KillRequest{Signal: uint32(unix.SIGKILL), ProcessId: "exec-1"}); err == nil {
		t.Error("SIGKILL of an exec'd process: no error")
	}
	select {
	case <-vm.Done():
		t.Fatal("the virtual machine was ended")
	default:
	}
	if _, err := s.service.Kill(t.Context(), &control.KillRequest{Signal: uint32(unix.SIGKILL)}); err != nil {
		t.Errorf("SIGKILL: %v", err)
	}
	select {
	case <-vm.Done():
	case <-time.After(patience):
		t.Error("the virtual machine goes on")
	}
}

// TestKillThatTheGuestIgnores: a guest that says it has killed the container's process, and
// never that the process has ended, is ended itself, in whichever way the kill came.
func TestKillThatTheGuestIgnores(t *testing.T) {
	if most := killAnswer + killTimeout; most > 30*time.Second {
		t.Errorf("a guest has %s to carry out a kill, docs/security.md says half a minute", most)
	}
	for name, kill := range map[string]func(*supervisor) error{
		"verb": func(s *supervisor) error {
			_, err := s.service.Kill(t.Context(), &control.KillRequest{Signal: uint32(unix.SIGKILL)})
			return err
		},
		"all": func(s *supervisor) error {
			_, err := s.service.Kill(t.Context(), &control.KillRequest{Signal: uint32(unix.SIGKILL), All: true})
			return err
		},
		"signal": func(s *supervisor) error {
			s.killing.forward(unix.SIGKILL)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, vm := met(t, &guest{})
			s.killing.limit = 50 * time.Millisecond
			if err := kill(s); err != nil {
				t.Fatal(err)
			}
			select {
			case <-vm.Done():
			case <-time.After(patience):
				t.Error("the virtual machine goes on")
			}
		})
	}
	t.Run("says it has ended", func(t *testing.T) {
		s, vm := met(t, &guest{fail: map[string]error{"kill": status.Error(codes.NotFound, "no such process")}})
		s.killing.limit = time.Hour
		if _, err := s.service.Kill(t.Context(), &control.KillRequest{Signal: uint32(unix.SIGKILL)}); err == nil {
			t.Error("no error")
		}
		select {
		case <-vm.Done():
			t.Error("a container that ends by itself has lost its last output and its exit code")
		default:
		}
	})
	t.Run("signals that do not kill", func(t *testing.T) {
		s, vm := met(t, &guest{})
		s.killing.limit = time.Millisecond
		if _, err := s.service.Kill(t.Context(), &control.KillRequest{Signal: uint32(unix.SIGTERM)}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-vm.Done():
			t.Error("the virtual machine was ended")
		case <-time.After(50 * time.Millisecond):
		}
	})
}

// TestKilledWithoutReader: a container that was killed does not wait for ever for a reader of
// its output.
func TestKilledWithoutReader(t *testing.T) {
	g := &guest{exits: map[string]chan uint32{protocol.InitProcess: make(chan uint32, 2)}}
	s, _ := met(t, g)
	s.control, s.relay = &socket{}, &stdio.Relay{} // its output never ends
	s.killing.limit = 50 * time.Millisecond
	if _, err := s.service.Kill(t.Context(), &control.KillRequest{Signal: uint32(unix.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	code := make(chan int, 1)
	go func() { code <- s.untilEnd() }()
	select {
	case c := <-code:
		if c != exitLost {
			t.Errorf("exit code %d", c)
		}
	case <-time.After(patience):
		t.Error("still waiting")
	}
}

// TestFullStateDirectory: a change that cannot be saved is not made, and the guest is not
// asked.
func TestFullStateDirectory(t *testing.T) {
	g := &guest{}
	s, _ := met(t, g)
	s.boot.Container.Cgroup = &cgroup.Group{}
	// A directory in place of the file that is written before the old one is replaced.
	full := filepath.Join(s.record.dir.Path, "husk.json.new", "x")
	fill := func() {
		t.Helper()
		if err := os.MkdirAll(full, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	empty := func() {
		t.Helper()
		if err := os.RemoveAll(filepath.Dir(full)); err != nil {
			t.Fatal(err)
		}
	}
	start := func() error { _, err := s.service.Start(t.Context(), &control.StartRequest{}); return err }
	pause := func() error { _, err := s.service.Pause(t.Context(), &control.PauseRequest{}); return err }
	resume := func() error { _, err := s.service.Resume(t.Context(), &control.ResumeRequest{}); return err }
	update := func() error {
		_, err := s.service.Update(t.Context(), &control.UpdateRequest{Resources: []byte("{}"), Limits: []byte("{}")})
		return err
	}
	for _, step := range []struct {
		name          string
		verb          func() error
		before, after state.Status
	}{
		{"start", start, state.Created, state.Running},
		{"update", update, state.Running, state.Running},
		{"pause", pause, state.Running, state.Paused},
		{"resume", resume, state.Paused, state.Running},
	} {
		asked := len(g.called())
		fill()
		if err := step.verb(); err == nil || !strings.Contains(err.Error(), "save state") {
			t.Errorf("%s: error %v", step.name, err)
		}
		if calls := g.called()[asked:]; len(calls) > 0 {
			t.Errorf("%s that could not be saved has asked the guest for %v", step.name, calls)
		}
		wantStatus(t, s, step.before)
		empty()
		if err := step.verb(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		wantStatus(t, s, step.after)
	}
}

// TestExitCodeOfAHostileGuest: exit codes have eight bits, whatever a guest sends.
func TestExitCodeOfAHostileGuest(t *testing.T) {
	g := &guest{exits: map[string]chan uint32{protocol.InitProcess: make(chan uint32, 1)}}
	g.exits[protocol.InitProcess] <- 0xffffff2a
	s, _ := met(t, g)
	select {
	case code := <-s.waitInit():
		if code != 42 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(patience):
		t.Error("still waiting")
	}
}

// TestVMEndsUnderTheContainer: if the virtual machine dies, a caller that waits sees a
// container that was killed, and the running verb reports the guest's last lines.
func TestVMEndsUnderTheContainer(t *testing.T) {
	s, vm := met(t, &guest{})
	s.control = &socket{}
	// This process may learn of it first by the channel.
	s.relay = &stdio.Relay{}
	vm.Print("line\nKernel panic - not syncing\n")
	vm.Fail(errors.New("exit status 1"))
	if code := s.untilEnd(); code != exitLost {
		t.Errorf("exit code %d", code)
	}
	_, err := s.saveTheReason(t.Context(), nil, nil, func(ctx context.Context, _ func(any) error) (any, error) {
		return s.service.Start(ctx, &control.StartRequest{})
	})
	if err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("start: %v", err)
	}
}

// TestVerbThatPanics: a panic in a verb fails only that verb, and its stack trace is in the log
// only.
func TestVerbThatPanics(t *testing.T) {
	s, _ := met(t, &guest{})
	var log strings.Builder
	s.log.SetOutput(&log)
	_, err := s.saveTheReason(t.Context(), nil, nil, func(context.Context, func(any) error) (any, error) { panic("oops") })
	if err == nil || !strings.Contains(err.Error(), "oops") || strings.Contains(err.Error(), ".go:") {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(log.String(), "TestVerbThatPanics") {
		t.Errorf("the log has no trace: %s", &log)
	}
}

// TestExecWhoseWaiterHasGone: an engine that kills the exec process on the host means the
// process in the guest.
func TestExecWhoseWaiterHasGone(t *testing.T) {
	g := &guest{exits: map[string]chan uint32{"exec-1": make(chan uint32, 1)}}
	s, _ := met(t, g)
	r, err := s.service.Exec(t.Context(), &control.ExecRequest{HostPid: 7})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.service.Wait(ctx, &control.WaitRequest{ProcessId: r.ProcessId}); err == nil {
		t.Error("wait returned an exit code")
	}
	// The call that was given up may be answered too.
	if got, want := slices.Compact(g.called()), []string{"exec exec-1", "kill exec-1 SIGKILL", "wait exec-1"}; !slices.Equal(got, want) {
		t.Errorf("the guest was asked for %v, want %v", g.called(), want)
	}
	if _, err := s.service.Wait(t.Context(), &control.WaitRequest{ProcessId: r.ProcessId}); !errors.Is(err, errNoProcess) {
		t.Errorf("wait again: %v", err)
	}
}

func TestExecOfAPausedContainerWaits(t *testing.T) {
	g := &guest{}
	s, _ := met(t, g)
	if _, err := s.service.Pause(t.Context(), &control.PauseRequest{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.service.Exec(ctx, &control.ExecRequest{IgnorePaused: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("exec whose caller has gone: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.service.Exec(t.Context(), &control.ExecRequest{IgnorePaused: true})
		done <- err
	}()
	if _, err := s.service.Resume(t.Context(), &control.ResumeRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("exec still waits")
	}
}

// TestExecOfAPausedContainerThatEnds: a container that ends waits for connected callers, so an
// exec that waits for a resume must end.
func TestExecOfAPausedContainerThatEnds(t *testing.T) {
	s, _ := met(t, &guest{})
	if _, err := s.service.Pause(t.Context(), &control.PauseRequest{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.service.Exec(t.Context(), &control.ExecRequest{IgnorePaused: true})
		done <- err
	}()
	close(s.over)
	select {
	case err := <-done:
		if err == nil || err.Error() != "cannot exec in a stopped container" {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("exec still waits")
	}
}

func TestUpdateThatTheMachineCannotHold(t *testing.T) {
	s, _ := met(t, &guest{})
	for resources, field := range map[string]string{
		`{"memory":{"limit":1073741824}}`: "memory.limit",
		`{"cpu":{"cpus":"0-2"}}`:          "cpu.cpus",
		`{`:                               "read resources",
	} {
		_, err := s.service.Update(t.Context(), &control.UpdateRequest{Resources: []byte(resources)})
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", resources, err)
		}
	}
}

// TestPhasesOfAHostileGuest: a guest may send any duration for its phases of create.
func TestPhasesOfAHostileGuest(t *testing.T) {
	c := &creation{s: bare(t), timings: timings.New("supervisor")}
	c.notePhases(&protocol.CreateResponse{StageNanos: -1, SetupNanos: 1 << 62, ShareNanos: int64(time.Millisecond)})
	phases := c.timings.Phases()
	if len(phases) != 1 || phases[0].Name != "guest setup: share" || phases[0].Took != time.Millisecond {
		t.Errorf("phases %v", phases)
	}
}

// TestStreamSocketGivesStdioOnly: who can reach the stream socket gets stdio of exec'd
// processes, and neither the agent's control stream nor streams of others.
func TestStreamSocketGivesStdioOnly(t *testing.T) {
	s, _ := met(t, &guest{})
	exec := &streams{id: s.id, machine: s.machine, rests: s.rests, log: s.log}
	for name, tc := range map[string]struct {
		header protocol.StreamHeader
		ok     bool
	}{
		"stdin":             {protocol.StreamHeader{Kind: protocol.StreamStdin, ContainerID: "c1", ProcessID: "exec-1"}, true},
		"control":           {protocol.StreamHeader{Kind: protocol.StreamControl, ContainerID: "c1", ProcessID: "exec-1"}, false},
		"names":             {protocol.StreamHeader{Kind: protocol.StreamNames, ContainerID: "c1", ProcessID: "exec-1"}, false},
		"another container": {protocol.StreamHeader{Kind: protocol.StreamStdin, ContainerID: "c2", ProcessID: "exec-1"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			theirs, ours, err := agentfake.Pair()
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			done := make(chan error, 1)
			go func() { done <- exec.proxy(ours.(*net.UnixConn)) }()
			if err := tc.header.Write(theirs); err != nil {
				t.Fatal(err)
			}
			if err := protocol.ReadStreamAck(theirs); (err == nil) != tc.ok {
				t.Errorf("answer: %v", err)
			}
			theirs.Close()
			select {
			case err := <-done:
				if (err == nil) != tc.ok {
					t.Errorf("proxy: %v", err)
				}
			case <-time.After(patience):
				t.Fatal("the connection is still served")
			}
		})
	}
}

// TestRestOfAStream: an exec process that ends passes on what other processes still write.
func TestRestOfAStream(t *testing.T) {
	s, _ := met(t, &guest{})
	exec := &streams{id: s.id, machine: s.machine, rests: s.rests, log: s.log}
	var err error
	if s.streams, err = listen(s.record.dir, state.StreamSocket); err != nil {
		t.Fatal(err)
	}
	defer s.streams.Close()
	proxied := make(chan error, 1)
	go func() {
		conn, err := s.streams.AcceptUnix()
		if err == nil {
			err = exec.proxy(conn)
		}
		proxied <- err
	}()
	theirs, ours, err := agentfake.Pair()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := control.Connect(dirWithControl(t, s))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Rest(protocol.StreamHeader{ContainerID: "c1", ProcessID: "exec-1"}, ours.(*net.UnixConn), w); err != nil {
		t.Fatal(err)
	}
	ours.Close() // as at the end of the exec process
	w.Close()
	if _, err := io.WriteString(theirs, "late"); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "late" {
		t.Errorf("the reader got %q, %v", b, err)
	}
	if err := <-proxied; err != nil {
		t.Error(err)
	}
	select {
	case <-s.rests.crowd.left():
	case <-time.After(patience):
		t.Error("the supervisor still carries it")
	}
}

// dirWithControl returns the supervisor's directory with a control socket that accepts
// connections and does not answer.
func dirWithControl(t *testing.T, s *supervisor) *state.Dir {
	t.Helper()
	l, err := listen(s.record.dir, state.ControlSocket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return s.record.dir
}
