package supervisor

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/huskvm/husk/host/failures"
)

// failed tells of what the container's exit code does not: that its virtual machine
// is lost, or that it was short of memory. Both places it tells are open from before
// there was no path to trust.
type failed struct {
	store *failures.Store // nil: it could not be opened
	log   *failures.Log   // nil: the host has none

	lost sync.Once

	mu     sync.Mutex
	oomAt  time.Time // of the last told, under mu
	oomMax uint64    // kills told of, under mu
}

// open connects to both. What cannot be opened is told nothing: the container is no
// worse for it.
func (f *failed) open(dir string) error {
	f.log = failures.OpenLog(failures.JournalSocket, failures.SyslogSocket)
	if dir == "" {
		return nil
	}
	var err error
	f.store, err = failures.OpenDetached(dir)
	return err
}

func (f *failed) tell(one failures.Failure) error {
	err := f.log.Send(one)
	if f.store != nil {
		err = errors.Join(err, f.store.Add(one))
	}
	return err
}

// loseVM tells, the first time it is called, why the virtual machine is of no use any
// more.
func (s *supervisor) loseVM(cause error) {
	s.failed.lost.Do(func() {
		s.log.Error(s.machine.WithConsole(cause))
		s.tellFailure(cause.Error(), s.machine.LastWords())
	})
}

func (s *supervisor) tellFailure(cause, console string) {
	if err := s.failed.tell(failures.New(s.container.ID, cause, console)); err != nil {
		s.log.WithError(err).Warn("tell of a failure")
	}
}

// oomInterval is how often at most a container's want of memory is told.
const oomInterval = time.Minute

// tellOOMKills tells of processes killed for want of memory in the guest.
func (s *supervisor) tellOOMKills(kills uint64) {
	f := &s.failed
	f.mu.Lock()
	tell := kills > f.oomMax && (f.oomAt.IsZero() || time.Since(f.oomAt) >= oomInterval)
	if tell {
		f.oomMax, f.oomAt = kills, time.Now()
	}
	f.mu.Unlock()
	if !tell {
		return
	}
	short := fmt.Sprintf("of the %d MiB of its virtual machine, which has no more", s.boot.Machine.MemoryMiB)
	s.mu.Lock()
	if g := s.container.Cgroup; g != nil && g.Limits != nil && g.Limits.Memory != nil && g.Limits.Memory.Limit != nil && *g.Limits.Memory.Limit > 0 {
		short = fmt.Sprintf("of its limit of %d bytes", *g.Limits.Memory.Limit)
	}
	s.mu.Unlock()
	s.tellFailure(fmt.Sprintf("out of memory %s: %d process(es) killed", short, kills), "")
}
