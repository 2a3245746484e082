package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/fake"
	"github.com/huskvm/husk/protocol"
	agentfake "github.com/huskvm/husk/protocol/client/fake"
)

const (
	build    = "test-build"
	patience = time.Minute
)

// agent answers the greeting and nothing else.
type agent struct {
	protocol.AgentService // nil: a call that a test does not expect panics
}

func (agent) Hello(_ context.Context, r *protocol.HelloRequest) (*protocol.HelloResponse, error) {
	if len(r.Entropy) != entropyBytes {
		return nil, errors.New("too little entropy")
	}
	return &protocol.HelloResponse{KernelRelease: "6.1"}, nil
}

// answers is a guest whose agent answers.
func answers(ctx context.Context, conn net.Conn, _ hypervisor.Config) error {
	return agentfake.Streams(conn, build, func(h protocol.StreamHeader, s net.Conn) {
		if h.Kind == protocol.StreamControl {
			_ = agentfake.Control(ctx, s, agent{})
			return
		}
		agentfake.Echo(s)
	})
}

func options(starter hypervisor.Starter) Options {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return Options{
		Starter: starter, Config: &Config{MemoryMiB: 512, VCPUs: 2, BootTimeout: patience},
		Build: build, Network: &Network{}, Log: log,
	}
}

// wantEnded checks that this many virtual machines were started and none runs.
func wantEnded(t *testing.T, starter *fake.Starter, started int) {
	t.Helper()
	if vms := starter.VMs(); len(vms) != started {
		t.Errorf("%d virtual machines were started, want %d", len(vms), started)
	}
	for _, vm := range starter.VMs() {
		select {
		case <-vm.Done():
		default:
			t.Error("a virtual machine still runs")
		}
	}
}

func TestStart(t *testing.T) {
	starter := &fake.Starter{Guest: answers, ConsoleText: "one\ntwo\n"}
	m, err := Start(t.Context(), options(starter))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := m.Stream(t.Context(), protocol.StreamHeader{Kind: protocol.StreamStdin, ContainerID: "c1", ProcessID: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stream, "echo"); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(stream); err != nil || string(b) != "echo" {
		t.Errorf("stream: %q, %v", b, err)
	}
	if pid, err := m.VMMPID(t.Context()); err != nil || pid != os.Getpid() {
		t.Errorf("pid of the vmm: %d, %v", pid, err)
	}
	if m.LastWords() != "one\ntwo" {
		t.Errorf("last words %q", m.LastWords())
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	wantEnded(t, starter, 1)
	if err := m.Err(); err == nil || !strings.HasPrefix(err.Error(), "virtual machine ended: ") {
		t.Errorf("err after the end: %v", err)
	}
}

// TestAgentThatIsNotMet: the error of a guest that does not answer names the cause.
func TestAgentThatIsNotMet(t *testing.T) {
	for name, tc := range map[string]struct {
		play  func(ctx context.Context, conn net.Conn, cfg hypervisor.Config) error
		limit time.Duration
		text  string
	}{
		"silent": {nil, 50 * time.Millisecond, "the guest did not answer within 50ms (setting boot_timeout)"},
		"ends": {
			func(context.Context, net.Conn, hypervisor.Config) error { return errors.New("no init found") },
			patience, "virtual machine ended: no init found",
		},
		"another build": {
			func(_ context.Context, conn net.Conn, _ hypervisor.Config) error {
				return protocol.Answer(conn, "other", nil)
			},
			patience, "host and agent do not match",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			starter := &fake.Starter{Guest: tc.play}
			o := options(starter)
			o.Config.BootTimeout = tc.limit
			if _, err := Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v, want %q", err, tc.text)
			}
			wantEnded(t, starter, 1)
		})
	}
}

// TestStartWithoutTimer: a guest that has no timer boots once more, but not for ever.
func TestStartWithoutTimer(t *testing.T) {
	for failures, works := range map[int32]bool{1: true, hypervisor.MaxBoots - 1: true, hypervisor.MaxBoots: false} {
		t.Run(fmt.Sprint(failures), func(t *testing.T) {
			var boots atomic.Int32
			starter := &fake.Starter{Guest: func(ctx context.Context, conn net.Conn, cfg hypervisor.Config) error {
				if boots.Add(1) <= failures {
					return hypervisor.ErrNoTimer
				}
				return answers(ctx, conn, cfg)
			}}
			m, err := Start(t.Context(), options(starter))
			if works {
				if err != nil {
					t.Fatal(err)
				}
				if err := m.Close(); err != nil {
					t.Error(err)
				}
				wantEnded(t, starter, int(failures)+1)
				return
			}
			if !errors.Is(err, hypervisor.ErrNoTimer) {
				t.Errorf("error is %v, want %v", err, hypervisor.ErrNoTimer)
			}
			wantEnded(t, starter, hypervisor.MaxBoots)
		})
	}
}

// TestStartThatIsNotWanted: if the caller gives up, the error is the caller's reason, and no
// template is discarded.
func TestStartThatIsNotWanted(t *testing.T) {
	gone := errors.New("the cli ended")
	start := func(t *testing.T, change func(*Options)) error {
		t.Helper()
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		starter := &fake.Starter{Guest: func(ctx context.Context, _ net.Conn, _ hypervisor.Config) error {
			cancel(gone)
			<-ctx.Done()
			return nil
		}}
		o := options(starter)
		change(&o)
		_, err := Start(ctx, o)
		wantEnded(t, starter, 1)
		return err
	}
	t.Run("boots", func(t *testing.T) {
		if err := start(t, func(*Options) {}); !errors.Is(err, gone) {
			t.Error(err)
		}
	})
	t.Run("wakes up", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "key")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		err := start(t, func(o *Options) {
			o.Config.Template = &Template{Store: filepath.Dir(dir), Key: "key", RAM: filepath.Join(dir, "ram")}
		})
		if err == nil {
			t.Error("no error")
		}
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("the template: %v", err)
		}
	})
}

// wakes has a guest for a VM that wakes up from a template, and one for a VM that boots.
type wakes struct {
	fake.Starter
	wakeErr error
}

func (w *wakes) Start(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	if cfg.RAMFile != "" && w.wakeErr != nil {
		return nil, w.wakeErr
	}
	return w.Starter.Start(ctx, cfg)
}

// TestWakeUp: with a template that does not work the VM boots, and the user gets a warning.
func TestWakeUp(t *testing.T) {
	sleeps := func(ctx context.Context, conn net.Conn, cfg hypervisor.Config) error {
		if cfg.RAMFile != "" {
			return errors.New("does not wake up")
		}
		return answers(ctx, conn, cfg)
	}
	for name, tc := range map[string]struct {
		guest   func(context.Context, net.Conn, hypervisor.Config) error
		wakeErr error
		nics    int
		started int
		warning string // empty: none
		kept    bool
	}{
		"works":         {answers, nil, 0, 1, "", true},
		"does not wake": {sleeps, nil, 0, 2, "the memory template does not work and is discarded", false},
		"cannot start":  {answers, errors.New("no such file"), 0, 1, "is discarded, so the container boots: no such file", false},
		"is not safe":   {answers, hypervisor.ErrTemplateUnsafe, 0, 1, "set templates to off", true},
		"other cards":   {answers, errors.New("never tried"), 1, 1, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			starter := &wakes{Starter: fake.Starter{Guest: tc.guest}, wakeErr: tc.wakeErr}
			o := options(starter)
			o.Config.NICs = tc.nics // no taps exist for them
			store := t.TempDir()
			dir := filepath.Join(store, "key")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			o.Config.Template = &Template{Store: store, Key: "key", RAM: filepath.Join(dir, "ram"), Devices: filepath.Join(dir, "devices")}
			m, err := Start(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(m.Warnings(), "\n"); (got == "") != (tc.warning == "") || !strings.Contains(got, tc.warning) {
				t.Errorf("warnings %q, want %q", got, tc.warning)
			}
			if _, err := os.Stat(dir); (err == nil) != tc.kept {
				t.Errorf("the template is kept: %v, want %v", err == nil, tc.kept)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			wantEnded(t, &starter.Starter, tc.started)
		})
	}
}

func TestLastLines(t *testing.T) {
	for in, want := range map[string]string{"": "", "a\n": "a", "a\nb\nc\n": "b\nc", "\n\n": "", "a\nb": "a\nb"} {
		if got := lastLines(in, 2); got != want {
			t.Errorf("lastLines(%q) = %q, want %q", in, got, want)
		}
	}
}
