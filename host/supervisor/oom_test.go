package supervisor

import (
	"os"
	"slices"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/supervisor/control"
)

// TestAwaitOOM: events gets each kill once, also one from before the call, and the end.
func TestAwaitOOM(t *testing.T) {
	g := &guest{kills: make(chan uint64)}
	s, _ := met(t, g)
	if _, err := s.service.Start(t.Context(), &control.StartRequest{}); err != nil {
		t.Fatal(err)
	}
	g.kills <- 1
	await := func(seen, want uint64) {
		t.Helper()
		resp, err := s.service.AwaitOOM(t.Context(), &control.AwaitOOMRequest{Seen: seen})
		if err != nil || resp.Kills != want {
			t.Errorf("after %d: %v, %v, want %d", seen, resp, err, want)
		}
	}
	await(0, 1)
	go func() { g.kills <- 4 }()
	await(1, 4)
	g.kills <- 2 // a guest that counts backwards is ignored from then on
	close(s.over)
	await(4, 4)
	calls := g.called()
	for _, want := range []string{"oom after 0", "oom after 1", "oom after 4"} {
		if !slices.Contains(calls, want) {
			t.Errorf("the agent was asked %v, not for %q", calls, want)
		}
	}
}

// TestOOMThatCannotBe: the claim of a guest whose machine has never used the memory that its
// container may use is ignored.
func TestOOMThatCannotBe(t *testing.T) {
	s, _ := met(t, &guest{}) // its vmm is this process
	var err error
	if s.ooms.host.vmm, err = os.Open("/proc/self/status"); err != nil {
		t.Fatal(err)
	}
	defer s.ooms.host.vmm.Close()
	said := func() uint64 {
		s.ooms.mu.Lock()
		defer s.ooms.mu.Unlock()
		return s.ooms.kills
	}
	s.ooms.ram = 1 << 40
	if s.ooms.note(1); said() != 0 {
		t.Error("a machine of 1 TiB has run out of memory")
	}
	limit := int64(1 << 40)
	s.boot.Container.Cgroup = &cgroup.Group{Limits: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}}
	if s.ooms.note(1); said() != 0 {
		t.Error("a container of 1 TiB has run out of memory")
	}
	limit = 1 << 20
	if s.ooms.note(1); said() != 1 {
		t.Error("a container of 1 MiB cannot run out of memory")
	}
}

// TestTellOOMSeldom: reports are rare, because each stops the machine and fills the container's
// memory.
func TestTellOOMSeldom(t *testing.T) {
	var h hostOOM
	now, told := time.Now(), 0
	for range 24 * 3600 {
		if h.mayTell(now) {
			told++
		}
		now = now.Add(time.Second)
	}
	if told < 2 || told > 24*3600/int(maxTellInterval/time.Second)+10 {
		t.Errorf("told %d times in a day", told)
	}
}

// TestHogSize: by the kernel's rule (oom_badness) the hog has more points than the vmm when no
// memory is left.
func TestHogSize(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		used, vmm int64
		adj       int
	}{
		{0, 0, 0},
		{60 * mib, 60 * mib, 0},
		{10 * mib, 400 * mib, 0},
		{10 * mib, 400 * mib, 1000},
		{500 * mib, 400 * mib, 1000},
		{500 * mib, 400 * mib, -1000},
		{4 << 30, 1 << 30, 500},
	} {
		hog := hogSize(c.used, c.vmm, c.adj)
		limit := c.used + hog
		if points, vmm := hog+limit, c.vmm+limit*int64(c.adj)/1000; points <= vmm || hog < hogBytes {
			t.Errorf("%+v: a hog of %d bytes has %d points, the vmm %d", c, hog, points, vmm)
		}
	}
}
