//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMetrics: what a monitor reads about a running, a paused and a silent container.
func TestMetrics(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	value := func(args ...string) func(name, labels string) string {
		lines := strings.Split(e.ok(append([]string{"metrics"}, args...)...), "\n")
		return func(name, labels string) string {
			start := fmt.Sprintf("%s{root=%q,%s} ", name, e.root, labels)
			for _, line := range lines {
				if v, ok := strings.CutPrefix(line, start); ok {
					return v
				}
			}
			return ""
		}
	}
	id := fmt.Sprintf("id=%q", c.id)
	is := func(got func(name, labels string) string, want map[string]string) {
		t.Helper()
		for metric, v := range want {
			name, labels, _ := strings.Cut(metric, " ")
			if g := got(name, labels); g != v {
				t.Errorf("%s is %q, want %q", metric, g, v)
			}
		}
	}
	running := value()
	is(running, map[string]string{`husk_containers status="running"`: "1", "husk_container_up " + id: "1", "husk_container_pids " + id: "1"})
	if v := running("husk_container_memory_usage_bytes", id); v == "" || v == "0" {
		t.Errorf("memory of a running container is %q", v)
	}
	e.ok("pause", c.id)
	is(value(), map[string]string{`husk_containers status="paused"`: "1", `husk_containers status="running"`: "0", "husk_container_up " + id: "1"})
	e.ok("resume", c.id)

	if err := unix.Kill(c.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	is(value("--timeout", "1s"), map[string]string{`husk_containers status="running"`: "1", "husk_container_up " + id: "0", "husk_container_pids " + id: ""})
	if err := unix.Kill(c.pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.stop()
}
