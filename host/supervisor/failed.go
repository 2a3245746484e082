package supervisor

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/failures"
	"github.com/huskvm/husk/host/machine"
)

// failed reports what the container's exit code does not tell: that its virtual machine is
// lost, or that it was short of memory. It writes to the failures and to the host's log, both
// of which were opened while paths could be trusted.
type failed struct {
	id      string // of the container
	log     *logrus.Logger
	store   *failures.Store // nil: it could not be opened
	journal *failures.Log   // nil: the host has none

	lost sync.Once

	// mu guards the fields below. It is held only to read or write them.
	mu     sync.Mutex
	oomAt  time.Time // of the last OOM kill that was reported
	oomMax uint64    // number of OOM kills reported
}

// openFailed connects to both. If one cannot be opened, nothing is reported there, and the
// container works as well without. An empty dir means no directory.
func openFailed(containerID, dir string, log *logrus.Logger) *failed {
	f := &failed{id: containerID, log: log, journal: failures.OpenLog(failures.JournalSocket, failures.SyslogSocket)}
	if dir == "" {
		return f
	}
	var err error
	if f.store, err = failures.OpenDetached(dir); err != nil {
		log.WithError(err).Warn("failures of this container are not kept")
	}
	return f
}

func (f *failed) tell(cause, console string) {
	one := failures.New(f.id, cause, console)
	err := f.journal.Send(one)
	if f.store != nil {
		err = errors.Join(err, f.store.Add(one))
	}
	if err != nil {
		f.log.WithError(err).Warn("tell of a failure")
	}
}

// loseVM reports, at its first call, why the virtual machine can no longer be used.
func (f *failed) loseVM(m *machine.Machine, cause error) {
	f.lost.Do(func() {
		f.log.Error(m.WithConsole(cause))
		f.tell(cause.Error(), m.LastWords())
	})
}

// expectEnd makes the end of the virtual machine no failure from now on.
func (f *failed) expectEnd() { f.lost.Do(func() {}) }

// oomInterval is the shortest time between two reports of one container that it is short of
// memory.
const oomInterval = time.Minute

// tellKills tells of processes killed for want of memory in the guest. short says of
// what.
func (f *failed) tellKills(kills uint64, short string) {
	f.mu.Lock()
	tell := kills > f.oomMax && (f.oomAt.IsZero() || time.Since(f.oomAt) >= oomInterval)
	if tell {
		f.oomMax, f.oomAt = kills, time.Now()
	}
	f.mu.Unlock()
	if tell {
		f.tell(fmt.Sprintf("out of memory %s: %d process(es) killed", short, kills), "")
	}
}
