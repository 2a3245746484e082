package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// counters say how often which fault was made.
type counters struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counters) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[name]++
}

func (c *counters) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for name, n := range c.n {
		all = append(all, fmt.Sprintf("%s %d", name, n))
	}
	sort.Strings(all)
	return strings.Join(all, ", ")
}

// ends are the ways in which a container of a cycle ends.
var ends = []string{"kill", "kill", "kill", "delete", "supervisor", "vmm", "create", "start", "exec"}

// cycle is one container's life. What a fault has killed may fail; delete --force may
// not, and state knows nothing of the container after it.
func (l *load) cycle(r *rand.Rand, n *network) error {
	id := l.id()
	end := ends[r.IntN(len(ends))]
	l.faults.add(end)
	bundle := l.bundle
	if r.IntN(2) == 0 {
		bundle = n.bundle
	}
	defer os.Remove(l.pidFile(id))
	err := l.live(id, end, bundle, time.Duration(r.IntN(600))*time.Millisecond)
	if derr := l.call("delete", "--force", id); derr != nil {
		return derr
	}
	if text, serr := l.ask("state", id); serr == nil {
		return fmt.Errorf("%s is still there after delete --force: %s", id, text)
	}
	return err
}

func (l *load) live(id, end, bundle string, moment time.Duration) error {
	create, err := l.start("create", "--bundle", bundle, "--pid-file", l.pidFile(id), id)
	if err != nil {
		return err
	}
	if end == "create" {
		l.killAfter(create, moment)
		return nil
	}
	if err := create.wait(); err != nil {
		return err
	}
	start, err := l.start("start", id)
	if err != nil {
		return err
	}
	if end == "start" {
		l.killAfter(start, moment/4)
		return nil
	}
	if err := start.wait(); err != nil {
		return err
	}
	switch end {
	case "kill":
		return l.call("kill", id, "KILL")
	case "exec":
		exec, err := l.start("exec", id, "sleep", "100")
		if err != nil {
			return err
		}
		l.killAfter(exec, moment)
		return l.call("exec", id, "true")
	case "supervisor":
		return kill(l.pidOf(id))
	case "vmm":
		// It has none any more, or not yet, or it ends by itself: all of it may be.
		_ = kill(vmmOf(l.pidOf(id)))
	}
	return nil
}

// killAfter kills a call of the runtime at some moment, unless it has ended.
func (l *load) killAfter(s *started, moment time.Duration) {
	select {
	case <-s.end:
	case <-time.After(moment):
		_ = kill(s.pid)
		<-s.end
	}
	s.said.Close()
	os.Remove(s.said.Name())
}

func kill(pid int) error {
	if pid <= 0 {
		return nil
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill %d: %w", pid, err)
	}
	return nil
}

// vmmOf finds the vmm among a supervisor's children.
func vmmOf(supervisor int) int {
	if supervisor == 0 {
		return 0
	}
	for _, pid := range childrenOf(supervisor) {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.Contains(filepath.Base(exe), "qemu") {
			return pid
		}
	}
	return 0
}
