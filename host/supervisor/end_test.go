package supervisor

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/stdio"
)

// TestKilledAndEnded checks that a kill's time limit has no effect on a container that has
// ended while its supervisor still answers verbs.
func TestKilledAndEnded(t *testing.T) {
	s, vm := met(t, &guest{})
	said := &lines{}
	s.log.SetOutput(said)
	close(s.over)
	s.killing.limit = time.Millisecond
	if _, err := s.service.Kill(t.Context(), &control.KillRequest{Signal: uint32(unix.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-vm.Done():
		t.Errorf("the virtual machine was ended: %s", said.text())
	case <-time.After(50 * time.Millisecond):
	}
}

// TestGivenUpIsNoFailure checks that ending the virtual machine of a container that its cli has
// not committed is not reported as a failure.
func TestGivenUpIsNoFailure(t *testing.T) {
	s, _ := met(t, &guest{})
	s.control, s.relay, s.parent = &socket{}, &stdio.Relay{}, abandoning(t)
	said := &lines{}
	s.log.SetOutput(said)
	if code := s.run(); code != exitSetup {
		t.Errorf("exit code %d", code)
	}
	s.shutDown()
	select {
	case <-s.over:
	case <-time.After(patience):
		t.Fatal("the end of the virtual machine is not seen")
	}
	if strings.Contains(said.text(), "level=error") {
		t.Errorf("told: %s", said.text())
	}
}

// lines is a log that a test reads while it is written.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// abandoning returns a parent that has ended without a commit.
func abandoning(t *testing.T) *launch.Parent {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	env := os.Environ() // Receive clears it
	defer func() {
		for _, pair := range env {
			name, value, _ := strings.Cut(pair, "=")
			_ = os.Setenv(name, value)
		}
	}()
	if err := os.Setenv("_HUSK_FDS", fmt.Sprintf("%s=%d", launch.FDBootstrap, fds[1])); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fds[0], []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fds[0]); err != nil {
		t.Fatal(err)
	}
	parent, err := launch.Receive(&struct{}{})
	if err != nil {
		t.Fatal(err)
	}
	return parent
}

// TestOutputsHandedOverAtTheEnd checks that the supervisor also waits for an output that an
// exec process hands over after the container has ended.
func TestOutputsHandedOverAtTheEnd(t *testing.T) {
	s := bare(t)
	s.control = &socket{}
	s.control.peers.enter() // an exec process
	ended := make(chan struct{})
	go func() {
		s.answerVerbs(nil) // without a limit
		close(ended)
	}()
	waits := func(what string, c *crowd) {
		t.Helper()
		for began := time.Now(); ; runtime.Gosched() {
			c.mu.Lock()
			waited := c.empty != nil
			c.mu.Unlock()
			select {
			case <-ended:
				t.Fatalf("%s is not waited for", what)
			default:
			}
			if waited {
				return
			}
			if time.Since(began) > patience {
				t.Fatalf("%s is never waited for", what)
			}
		}
	}
	waits("the exec process", &s.control.peers)
	s.rests.crowd.enter() // it hands an output over and ends
	s.control.peers.leave()
	waits("its output", &s.rests.crowd)
	s.rests.crowd.leave()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("still waiting")
	}
}
