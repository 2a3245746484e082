package supervisor

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/state"
)

// record is the container's status and what is saved of it. It knows neither machine nor
// guest.
//
// A verb that changes the status is one change: begin, a look whether the verb is allowed,
// stage, what the verb does, commit. There is one at a time.
type record struct {
	id  string
	dir *state.Dir
	log *logrus.Logger

	// changing is held by a change from begin to its end, calls to the guest included.
	// Between stage and commit nobody else may save, or a commit would undo that.
	changing sync.Mutex

	// mu guards the fields below for the moment in which they are read or written. It is
	// taken with changing held or without, never the other way round, and never held in a
	// call to the guest. Of container only Saved, Cgroup, Network and NetworkProblem
	// change; who reads others needs no lock.
	mu        sync.Mutex
	container *state.Container
	ended     bool // the container's process has ended; only its output is still on its way
}

func newRecord(dir *state.Dir, container *state.Container, log *logrus.Logger) *record {
	return &record{id: container.ID, dir: dir, log: log, container: container}
}

// status is the status by now.
func (r *record) status() state.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return state.Stopped
	}
	return r.container.Saved
}

// end makes the status stopped: the container's process has ended.
func (r *record) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
}

// allowed returns an error where the status does not allow a verb.
func (r *record) allowed(verb state.Verb) error {
	return state.Allowed(verb, r.id, r.status())
}

// begin begins a change by a verb. The caller ends it with done, unless there is an error.
func (r *record) begin(verb state.Verb) (done func(), err error) {
	r.changing.Lock()
	if err := r.allowed(verb); err != nil {
		r.changing.Unlock()
		return nil, err
	}
	return r.changing.Unlock, nil
}

// pid is the container's pid on the host.
func (r *record) pid() int { return r.container.Supervisor.PID }

// setNetwork notes where the network's wiring may be left. It is saved with the next change.
func (r *record) setNetwork(n *state.Network) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.container.Network = n
}

// saveNetworkProblem saves what problem returns. It waits for the change under way, and asks
// only then: of two callers the last has the last word.
func (r *record) saveNetworkProblem(problem func() string) {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	c := *r.container
	c.NetworkProblem = problem()
	if err := r.dir.Save(&c); err != nil {
		r.log.WithError(err).Warn("save state")
		return
	}
	r.container.NetworkProblem = c.NetworkProblem
}

// memoryLimit is the container's limit of memory, in bytes; 0: it has none.
func (r *record) memoryLimit() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.container.Cgroup
	if g == nil || g.Limits == nil || g.Limits.Memory == nil || g.Limits.Memory.Limit == nil {
		return 0
	}
	return max(*g.Limits.Memory.Limit, 0)
}

// staged is the container's state as it will be once what a verb is about to do has
// been done. It is on the disk before: what cannot be saved is not done.
type staged struct {
	r    *record
	file *state.Staged
	next state.Container
}

// stage writes the state with a change. The caller holds changing.
func (r *record) stage(change func(*state.Container)) (*staged, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := &staged{r: r, next: *r.container}
	change(&g.next)
	var err error
	g.file, err = r.dir.Stage(&g.next)
	if err != nil {
		return nil, err
	}
	return g, nil
}

func (r *record) stageStatus(status state.Status) (*staged, error) {
	return r.stage(func(c *state.Container) { c.Saved = status })
}

// stageLimits stages those that the host has from now on, as JSON; nothing where there are
// none.
func (r *record) stageLimits(limits []byte) (*staged, error) {
	if r.container.Cgroup == nil || len(limits) == 0 {
		return r.stage(func(*state.Container) {})
	}
	l := &specs.LinuxResources{}
	if err := json.Unmarshal(limits, l); err != nil {
		return nil, fmt.Errorf("read limits: %w", err)
	}
	return r.stage(func(c *state.Container) {
		g := *c.Cgroup
		g.Limits, c.Cgroup = l, &g
	})
}

// setStatus is a change of the status alone.
func (r *record) setStatus(status state.Status) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	g, err := r.stageStatus(status)
	if err != nil {
		return err
	}
	g.commit()
	return nil
}

// commit makes the change the container's state. What has been done is so whether it
// can be saved or not: the next change is saved with it.
func (g *staged) commit() {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	if err := g.file.Commit(); err != nil {
		g.r.log.WithError(err).Error("the container's state file is out of date")
	}
	// Not the whole of it: what never changes is read without the lock.
	g.r.container.Saved, g.r.container.Cgroup = g.next.Saved, g.next.Cgroup
}

// cancel takes back what was not committed.
func (g *staged) cancel() { g.file.Cancel() }

// logFile is the log, of which nothing is told where it cannot be written: logrus
// tells stderr, which is the container's.
type logFile struct{ io.Writer }

func (f logFile) Write(b []byte) (int, error) {
	_, _ = f.Writer.Write(b)
	return len(b), nil
}
