package supervisor

import (
	"io"

	"github.com/huskvm/husk/host/state"
)

// staged is the container's state as it will be once what a verb is about to do has
// been done. It is on the disk before: what cannot be saved is not done. A verb holds
// s.verbs, so there is one at a time.
type staged struct {
	s    *supervisor
	file *state.Staged
	next state.Container
}

// stage writes the state with a change.
func (s *supervisor) stage(change func(*state.Container)) (*staged, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := &staged{s: s, next: *s.container}
	change(&g.next)
	var err error
	g.file, err = s.dir.Stage(&g.next)
	if err != nil {
		return nil, err
	}
	return g, nil
}

func (s *supervisor) stageStatus(status state.Status) (*staged, error) {
	return s.stage(func(c *state.Container) { c.Saved = status })
}

// commit makes the change the container's state. What has been done is so whether it
// can be saved or not: the next change is saved with it.
func (g *staged) commit() {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	if err := g.file.Commit(); err != nil {
		g.s.log.WithError(err).Error("the container's state file is out of date")
	}
	// Not the whole of it: what never changes is read without the lock.
	g.s.container.Saved, g.s.container.Cgroup = g.next.Saved, g.next.Cgroup
}

// cancel takes back what was not committed.
func (g *staged) cancel() { g.file.Cancel() }

func (s *supervisor) setStatus(status state.Status) error {
	g, err := s.stageStatus(status)
	if err != nil {
		return err
	}
	g.commit()
	return nil
}

// logFile is the log, of which nothing is told where it cannot be written: logrus
// tells stderr, which is the container's.
type logFile struct{ io.Writer }

func (f logFile) Write(b []byte) (int, error) {
	_, _ = f.Writer.Write(b)
	return len(b), nil
}
