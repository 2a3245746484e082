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

// record is the container's status and saved state. It does not know the machine or the guest.
// A verb that changes the status makes one change: it calls begin, which checks whether the
// verb is allowed, then stage, does its work, and calls commit. Only one change is made at a
// time.
type record struct {
	id  string
	dir *state.Dir
	log *logrus.Logger

	// changing is held by a change from begin to its end, also during calls to the guest. If
	// somebody else saved between stage and commit, commit would undo that.
	changing sync.Mutex

	// mu guards the fields below. It may be taken while changing is held, but changing is never
	// taken while mu is held. mu is never held during a call to the guest. Of container only
	// Saved, Cgroup, Network and NetworkProblem change; reading the other fields needs no lock.
	mu        sync.Mutex
	container *state.Container
	ended     bool // the container's process has ended, and only its output is still on its way
}

func newRecord(dir *state.Dir, container *state.Container, log *logrus.Logger) *record {
	return &record{id: container.ID, dir: dir, log: log, container: container}
}

// status returns the present status.
func (r *record) status() state.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return state.Stopped
	}
	return r.container.Saved
}

// end sets the status stopped, after the container's process has ended.
func (r *record) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
}

// allowed returns an error if the status does not allow the verb.
func (r *record) allowed(verb state.Verb) error {
	return state.Allowed(verb, r.id, r.status())
}

// begin begins a verb's change. If there is no error, the caller must call done at the end.
func (r *record) begin(verb state.Verb) (done func(), err error) {
	r.changing.Lock()
	if err := r.allowed(verb); err != nil {
		r.changing.Unlock()
		return nil, err
	}
	return r.changing.Unlock, nil
}

// pid returns the container's pid on the host.
func (r *record) pid() int { return r.container.Supervisor.PID }

// setNetwork notes what the network's wiring may leave behind. It is saved with the next
// change.
func (r *record) setNetwork(n *state.Network) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.container.Network = n
}

// saveNetworkProblem saves what problem returns. It first waits for the change under way and
// then calls problem, so that the later of two callers saves the later result.
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

// memoryLimit returns the container's memory limit in bytes, or 0 if it has none.
func (r *record) memoryLimit() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.container.Cgroup
	if g == nil || g.Limits == nil || g.Limits.Memory == nil || g.Limits.Memory.Limit == nil {
		return 0
	}
	return max(*g.Limits.Memory.Limit, 0)
}

// staged is the container's state as it will be after the verb. It is written to the disk
// before the verb does anything, so that a verb whose result cannot be saved is not done.
type staged struct {
	r    *record
	file *state.Staged
	next state.Container
}

// stage writes the changed state to the disk. The caller holds changing.
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

// stageLimits stages the limits that the host applies from now on, as JSON. Empty limits change
// nothing.
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

// setStatus makes a change of the status alone.
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

// commit makes the change the container's state. If it cannot be saved, what was done stays
// done, and the next change is saved with it.
func (g *staged) commit() {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	if err := g.file.Commit(); err != nil {
		g.r.log.WithError(err).Error("the container's state file is out of date")
	}
	// Only these fields, because those that never change are read without the lock.
	g.r.container.Saved, g.r.container.Cgroup = g.next.Saved, g.next.Cgroup
}

// cancel undoes a stage that was not committed.
func (g *staged) cancel() { g.file.Cancel() }

// logFile is the log file. If writing fails it hides the error, because logrus would print it
// on stderr, which is the container's.
type logFile struct{ io.Writer }

func (f logFile) Write(b []byte) (int, error) {
	_, _ = f.Writer.Write(b)
	return len(b), nil
}
