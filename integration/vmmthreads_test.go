//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/integration/injector"
)

// pidsMax is the limit of tasks in the cgroup of a process, "" where the host counts none.
func pidsMax(t *testing.T, pid int) string {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/cgroup", pid))) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		var dir string
		switch fields[1] {
		case "pids":
			dir = "/sys/fs/cgroup/pids"
		case "":
			dir = "/sys/fs/cgroup"
		default:
			continue
		}
		if text, err := os.ReadFile(filepath.Join(dir, fields[2], "pids.max")); err == nil {
			return strings.TrimSpace(string(text))
		}
	}
	return ""
}

// TestVMMThreadsAreBounded: a vmm cannot make threads until the host has no number left
// for a process, whether config.json names a limit of processes or not.
func TestVMMThreadsAreBounded(t *testing.T) {
	needVM(t)
	t.Parallel()
	t.Run("cgroup", func(t *testing.T) {
		t.Parallel()
		e := newEnv(t)
		c := e.create(e.bundle(withArgs("sleep", "1000")))
		vmm := e.vmms()[0]
		if pidsMax(t, vmm) == "" {
			t.Skip("the host has no pids controller")
		}
		check := func(when, want string) {
			t.Helper()
			if got := pidsMax(t, vmm); got != want {
				t.Errorf("%s: pids.max is %s, want %s", when, got, want)
			}
		}
		check("created", "4096")
		e.ok("start", c.id)
		check("started", "4096")
		// So many threads are too many for a test.
		e.ok("update", "--pids-limit", "1", c.id)
		check("updated", "528")
		threadsEnd(t, vmm, 528)
		c.e.exitOf(c.exit)
		e.ok("delete", "--force", c.id)
	})
	t.Run("limit of its user", func(t *testing.T) {
		t.Parallel()
		e := newEnv(t)
		c := e.createStarted(e.mappedBundle(withArgs("sleep", "1000"), withUserNS("")))
		threadsEnd(t, e.vmms()[0], 512)
		c.e.exitOf(c.exit)
		e.ok("delete", "--force", c.id)
	})
}

// threadsEnd fails if a vmm can make as many threads as bound, and ends it.
func threadsEnd(t *testing.T, vmm, bound int) {
	t.Helper()
	const more = 50
	err := injector.Run(vmm, func(i *injector.Injector) error {
		made, err := i.Threads(bound + more)
		if made >= bound || !errors.Is(err, unix.EAGAIN) {
			t.Errorf("the vmm has made %d threads, then: %v", made, err)
		}
		return i.End()
	})
	if !errors.Is(err, injector.ErrEnded) {
		t.Error(err)
	}
}
