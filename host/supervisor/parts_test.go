package supervisor

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/state"
)

func TestPause(t *testing.T) {
	p := newPause()
	p.begin(state.Created)
	first := p.over()
	p.end()
	select {
	case <-first:
	default:
		t.Error("who waits for the resume still waits")
	}
	p.begin(state.Running)
	if p.status() != state.Running {
		t.Errorf("it goes back to %s", p.status())
	}
	select {
	case <-p.over():
		t.Error("the second pause is over")
	default:
	}
}

// A second kill does not give the container more time, and the machine is ended only once.
func TestKillAgain(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	ended := make(chan error, 10)
	k := newKilling("c1", &guest{}, make(chan struct{}), func(reason error) error { ended <- reason; return nil }, log)
	k.limit = 30 * time.Millisecond
	began := time.Now()
	for time.Since(began) < 10*k.limit {
		if err := k.signalInit(t.Context(), unix.SIGKILL, false); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case reason := <-ended:
		if !strings.Contains(reason.Error(), "has not ended within") {
			t.Error(reason)
		}
	case <-time.After(patience):
		t.Fatal("it lives on")
	}
	<-k.now
	if len(ended) > 0 {
		t.Error("the machine was ended twice")
	}
}

// If a container ends in time, its machine is not ended before.
func TestKilledInTime(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	over := make(chan struct{})
	k := newKilling("c1", &guest{}, over, func(error) error { t.Error("the machine was ended"); return nil }, log)
	k.limit = time.Millisecond
	close(over)
	if err := k.signalInit(t.Context(), unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	<-k.now
}

// The end of a machine that is expected is not a failure.
func TestExpectedEndIsNoFailure(t *testing.T) {
	s, vm := met(t, &guest{})
	var log strings.Builder
	s.log.SetOutput(&log)
	s.failed.expectEnd()
	vm.Fail(errors.New("exit status 1"))
	s.failed.loseVM(s.machine, errors.New("lost"))
	if log.Len() > 0 {
		t.Errorf("the log: %s", &log)
	}
}

// If processes are killed for lack of memory again and again, the log says so only from time to
// time.
func TestKillsAreToldSeldom(t *testing.T) {
	f := &failed{id: "c1", log: logrus.New()}
	f.tellKills(1, "of its limit")
	at := f.oomAt
	f.tellKills(2, "of its limit")
	if f.oomMax != 1 || !f.oomAt.Equal(at) {
		t.Errorf("told of %d kills within a minute", f.oomMax)
	}
	f.oomAt = at.Add(-oomInterval)
	f.tellKills(1, "of its limit")
	if f.oomMax != 1 || !f.oomAt.Equal(at.Add(-oomInterval)) {
		t.Error("told twice of one kill")
	}
	f.tellKills(3, "of its limit")
	if f.oomMax != 3 {
		t.Errorf("told of %d kills after a minute", f.oomMax)
	}
}
