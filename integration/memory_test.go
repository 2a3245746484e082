//go:build integration

package integration

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var rssLine = regexp.MustCompile(`(?m)^Rss:\s+(\d+) kB`)

// rssMiB returns how much of the host's memory a process uses.
func rssMiB(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := rssLine.FindSubmatch(text)
	if m == nil {
		t.Fatalf("no Rss in %s", text)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

// TestFreedMemoryGoesBack: with free_page_reporting the host gets memory back that a container
// has freed.
func TestFreedMemoryGoesBack(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	const mib = 300
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) {
		s.Annotations = map[string]string{"org.huskvm.free_page_reporting": "true"}
	}))
	vmm := e.vmms()[0]
	before := rssMiB(t, vmm)
	p := e.start(call{}, "exec", c.id, "sh", "-c", fmt.Sprintf("testprog memory %d && read x", mib))
	p.stdout.expect(t, fmt.Sprintf("touched %d\n", mib))
	peak := rssMiB(t, vmm)
	if peak < before+mib {
		t.Fatalf("%d MiB of the host before, %d MiB with %d MiB touched", before, peak, mib)
	}
	p.wait() // its stdin is at its end
	// The kernel reports its free pages every two seconds.
	eventually(t, fmt.Sprintf("%d MiB of the host before, %d MiB at the peak, back to the first", before, peak), 30*time.Second,
		func() bool { return rssMiB(t, vmm) <= before+mib/3 })
	t.Logf("%d MiB of the host before, %d MiB at the peak, %d MiB after", before, peak, rssMiB(t, vmm))
	c.stop()
}
