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

// failed tells of what the container's exit code does not: that its virtual machine
// is lost, or that it was short of memory. Both places it tells are open from before
// there was no path to trust.
type failed struct {
	id      string // of the container
	log     *logrus.Logger
	store   *failures.Store // nil: it could not be opened
	journal *failures.Log   // nil: the host has none

	lost sync.Once

	// mu guards the fields below for the moment in which they are read or written.
	mu     sync.Mutex
	oomAt  time.Time // of the last told
	oomMax uint64    // kills told of
}

// openFailed connects to both. What cannot be opened is told nothing: the container is no
// worse for it. An empty dir is none.
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

// loseVM tells, the first time it is called, why the virtual machine is of no use any
// more.
func (f *failed) loseVM(m *machine.Machine, cause error) {
	f.lost.Do(func() {
		f.log.Error(m.WithConsole(cause))
		f.tell(cause.Error(), m.LastWords())
	})
}

// expectEnd says that the end of the virtual machine is no failure from now on.
func (f *failed) expectEnd() { f.lost.Do(func() {}) }

// oomInterval is how often at most a container's want of memory is told.
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
