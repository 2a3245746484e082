package supervisor

import (
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/state"
)

func saved(t *testing.T, r *record) *state.Container {
	t.Helper()
	c, err := r.dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Saving a network problem waits for a verb's change under way; otherwise one of the two would
// be lost.
func TestNetworkProblemWaitsForTheChange(t *testing.T) {
	r := bare(t).record
	done, err := r.begin(state.Start)
	if err != nil {
		t.Fatal(err)
	}
	change, err := r.stageStatus(state.Running)
	if err != nil {
		t.Fatal(err)
	}
	problem := make(chan string, 1)
	told := make(chan struct{})
	go func() {
		defer close(told)
		r.saveNetworkProblem(func() string { return <-problem })
	}()
	select {
	case <-told:
		t.Fatal("saved in the middle of a change")
	case <-time.After(20 * time.Millisecond):
	}
	change.commit()
	done()
	problem <- "no card"
	<-told
	if c := saved(t, r); c.Saved != state.Running || c.NetworkProblem != "no card" {
		t.Errorf("saved: %s, %q", c.Saved, c.NetworkProblem)
	}
}

// The next change contains what was noted or saved before it.
func TestChangesKeepEachOther(t *testing.T) {
	r := bare(t).record
	r.setNetwork(&state.Network{HostPath: "/run/netns/x"})
	r.saveNetworkProblem(func() string { return "no card" })
	if err := r.setStatus(state.Running); err != nil {
		t.Fatal(err)
	}
	if c := saved(t, r); c.Network == nil || c.NetworkProblem != "no card" || c.Saved != state.Running {
		t.Errorf("saved: %+v", c)
	}
}

func TestChangeThatIsCancelled(t *testing.T) {
	r := bare(t).record
	change, err := r.stageStatus(state.Running)
	if err != nil {
		t.Fatal(err)
	}
	change.cancel()
	if c := saved(t, r); c.Saved != state.Created || r.status() != state.Created {
		t.Errorf("saved: %s, status %s", c.Saved, r.status())
	}
}

// A verb that is refused leaves no lock held.
func TestBeginThatIsRefused(t *testing.T) {
	r := bare(t).record
	if _, err := r.begin(state.Resume); err == nil {
		t.Error("resume of a created container: no error")
	}
	r.end()
	if _, err := r.begin(state.Start); err == nil || r.status() != state.Stopped {
		t.Errorf("start of a stopped container: %v, status %s", err, r.status())
	}
	if !r.changing.TryLock() {
		t.Error("a change is still under way")
	}
}

func TestMemoryLimit(t *testing.T) {
	r := bare(t).record
	limit := func(bytes *int64) *cgroup.Group {
		return &cgroup.Group{Limits: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: bytes}}}
	}
	unlimited, some := int64(-1), int64(1<<20)
	for name, tc := range map[string]struct {
		group *cgroup.Group
		want  int64
	}{
		"no cgroup": {nil, 0},
		"no limits": {&cgroup.Group{}, 0},
		"no memory": {limit(nil), 0},
		"unlimited": {limit(&unlimited), 0},
		"some":      {limit(&some), 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			r.container.Cgroup = tc.group
			if got := r.memoryLimit(); got != tc.want {
				t.Errorf("%d bytes, want %d", got, tc.want)
			}
		})
	}
	r.container.Cgroup = &cgroup.Group{}
	if _, err := r.stageLimits([]byte("{")); err == nil {
		t.Error("limits that are no JSON were saved")
	}
}
