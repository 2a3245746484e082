package supervisor

import (
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/supervisor/control"
)

func execs(g *guest) *executions {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return newExecutions("c1", g, log)
}

func TestExecutionsAreNumbered(t *testing.T) {
	g := &guest{exits: map[string]chan uint32{"exec-2": make(chan uint32, 1)}}
	e := execs(g)
	for i, want := range []string{"exec-1", "exec-2"} {
		if id, err := e.start(t.Context(), &control.ExecRequest{HostPid: int32(i + 1)}); err != nil || id != want {
			t.Errorf("%q, %v; want %q", id, err, want)
		}
	}
	g.exits["exec-2"] <- 3
	if resp, err := e.await(t.Context(), "exec-2"); err != nil || resp.ExitCode != 3 {
		t.Errorf("wait: %v, %v", resp, err)
	}
	if pids := e.hostPIDs(); !slices.Equal(pids, []int32{1}) {
		t.Errorf("exec processes %v", pids)
	}
	g.fail = map[string]error{"exec": errors.New("no")}
	if _, err := e.start(t.Context(), &control.ExecRequest{HostPid: 9}); err == nil || len(e.hostPIDs()) != 1 {
		t.Errorf("a process that was never made: %v, %v", err, e.hostPIDs())
	}
	g.fail = nil
	if id, err := e.start(t.Context(), &control.ExecRequest{}); err != nil || id != "exec-4" {
		t.Errorf("an ID was used twice: %q, %v", id, err)
	}
}

// The exec process has died before it could wait for its process.
func TestOrphanedExecution(t *testing.T) {
	synctest.Test(t, orphanedExecution)
}

func orphanedExecution(t *testing.T) {
	g := &guest{exits: map[string]chan uint32{"exec-1": make(chan uint32, 1)}}
	e := execs(g)
	id, err := e.start(t.Context(), &control.ExecRequest{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(e.orphanAfter) // of the test's own clock, which does not wait
	synctest.Wait()
	if len(e.hostPIDs()) > 0 {
		t.Fatal("nobody has ended it")
	}
	if want := []string{"exec exec-1", "kill exec-1 SIGKILL", "wait exec-1"}; !slices.Equal(g.called(), want) {
		t.Errorf("the guest was asked for %v, want %v", g.called(), want)
	}
	if _, err := e.await(t.Context(), id); !errors.Is(err, errNoProcess) {
		t.Errorf("wait: %v", err)
	}
}

// A process that somebody waits for in time is not ended.
func TestExecutionThatIsWaitedFor(t *testing.T) {
	e := execs(&guest{})
	id, err := e.start(t.Context(), &control.ExecRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !e.claim(id) {
		t.Error("it is nobody's")
	}
	if e.claim(id) {
		t.Error("two wait for one process")
	}
	if e.claim("exec-9") {
		t.Error("a process that never was has been waited for")
	}
}
