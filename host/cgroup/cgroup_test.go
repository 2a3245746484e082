package cgroup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// uniquePath returns a cgroupsPath that nobody else uses. Its groups are removed at the test's
// end.
func uniquePath(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("cgroups need root")
	}
	name := fmt.Sprintf("husk-test-%d-%s", os.Getpid(), strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")))
	t.Cleanup(func() {
		if left := groupsNamed(name); len(left) > 0 {
			t.Errorf("left behind: %v", left)
			for _, dir := range left {
				_ = removeTree(dir)
			}
		}
	})
	return "/" + name
}

// groupsNamed returns the directories with this name at the root of any hierarchy.
func groupsNamed(name string) []string {
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	v2, _ := filepath.Glob("/sys/fs/cgroup/" + name)
	return append(v1, v2...)
}

func startSleep(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func newGroup(t *testing.T, path string) *Group {
	t.Helper()
	g, err := New("id", path, false)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func join(t *testing.T, g *Group, pid int) {
	t.Helper()
	if err := g.Join(pid); err != nil {
		_ = g.Remove(t.Context())
		t.Fatal(err)
	}
}

func remove(t *testing.T, g *Group) {
	t.Helper()
	if err := g.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLifecycle(t *testing.T) { onEachVersion(t, testLifecycle) }

func testLifecycle(t *testing.T) {
	t.Helper()
	path := uniquePath(t)
	g := newGroup(t, path)
	if found := groupsNamed(path[1:]); len(found) > 0 {
		t.Errorf("New made %v", found)
	}
	sleep := startSleep(t)
	join(t, g, sleep.Process.Pid)
	if len(g.Skipped) > 0 {
		t.Errorf("skipped %v", g.Skipped)
	}
	own, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", sleep.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for controller, in := range own {
		if dir, mounted := g.Paths[controller]; mounted && in != path {
			t.Errorf("%q: process is in %s, the group is %s", controller, in, dir)
		} else if !mounted && in == path {
			t.Errorf("%q: not in paths %v", controller, g.Paths)
		}
	}
	if name, err := g.Name(); err != nil || name != path {
		t.Errorf("name %q, %v, want %q", name, err, path)
	}
	if pids, err := g.Pids(); err != nil || !slices.Equal(pids, []int{sleep.Process.Pid}) {
		t.Errorf("pids %v, %v, want %d", pids, err, sleep.Process.Pid)
	}
	checkRemoval(t, g, sleep)
}

func TestAdd(t *testing.T) { onEachVersion(t, testAdd) }

func testAdd(t *testing.T) {
	t.Helper()
	g := newGroup(t, uniquePath(t))
	first, second := startSleep(t), startSleep(t)
	join(t, g, first.Process.Pid)
	if err := g.Add(second.Process.Pid); err != nil {
		t.Error(err)
	}
	of := func(cmd *exec.Cmd) map[string]string {
		own, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return own
	}
	if a, b := of(first), of(second); !maps.Equal(a, b) {
		t.Errorf("the second process is in %v, the first in %v", b, a)
	}
	for _, cmd := range []*exec.Cmd{first, second} {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	remove(t, g)
	if err := g.Add(startSleep(t).Process.Pid); err == nil {
		t.Error("a process was put into a group that is gone")
	}
}

// checkRemoval removes the group as another process would: from the saved data, while the
// killed process is still exiting.
func checkRemoval(t *testing.T, g *Group, sleep *exec.Cmd) {
	t.Helper()
	saved, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	var loaded Group
	if err := json.Unmarshal(saved, &loaded); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = loaded.Remove(short)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprint(sleep.Process.Pid)) {
		t.Errorf("remove with a live process: %v, want its pid and the deadline", err)
	}
	if err := unix.Kill(sleep.Process.Pid, 0); err != nil {
		t.Errorf("remove killed the process: %v", err)
	}
	time.AfterFunc(30*time.Millisecond, func() { _ = sleep.Process.Kill() })
	for range 2 {
		remove(t, &loaded) // the process is a zombie, which must not prevent the removal
	}
	if pids, err := loaded.Pids(); err != nil || len(pids) > 0 {
		t.Errorf("pids of a removed group: %v, %v", pids, err)
	}
}

func TestStrayDirectories(t *testing.T) {
	if !inLayout(t, "plain-directories") {
		return
	}
	path := uniquePath(t)
	g := newGroup(t, path)
	for _, c := range []string{"devices", "net_cls", "perf_event", "hugetlb"} {
		if dir, ok := g.Paths[c]; ok {
			t.Errorf("took plain directory %s for controller %s", dir, c)
		}
	}
	if g.Paths["memory"] != "/sys/fs/cgroup/memory"+path {
		t.Errorf("paths %v", g.Paths)
	}
	sleep := startSleep(t)
	join(t, g, sleep.Process.Pid)
	_ = sleep.Process.Kill()
	// A path outside of all hierarchies is left alone, whatever is there.
	stray := "/sys/fs/cgroup/net_cls" + path
	if err := os.Mkdir(stray, 0o755); err != nil {
		t.Fatal(err)
	}
	g.Paths["net_cls"] = stray
	g.Paths["root"] = "/sys/fs/cgroup/memory"
	remove(t, g)
	if err := os.Remove(stray); err != nil {
		t.Errorf("plain directory: %v", err)
	}
}

func TestForbiddenController(t *testing.T) {
	if !inLayout(t, "pids-read-only") {
		return
	}
	g := newGroup(t, uniquePath(t))
	sleep := startSleep(t)
	join(t, g, sleep.Process.Pid)
	if !strings.Contains(g.Skipped["pids"], "read-only") || len(g.Skipped) != 1 {
		t.Errorf("skipped %v, want pids only", g.Skipped)
	}
	if pids, err := g.Pids(); err != nil || !slices.Equal(pids, []int{sleep.Process.Pid}) {
		t.Errorf("pids %v, %v", pids, err)
	}
	_ = sleep.Process.Kill()
	remove(t, g)
}

func TestForbiddenAltogether(t *testing.T) {
	if !inLayout(t, "all-read-only") {
		return
	}
	g := newGroup(t, uniquePath(t))
	if err := g.Join(startSleep(t).Process.Pid); !errors.Is(err, unix.EROFS) {
		t.Errorf("join: %v, want EROFS", err)
	}
	remove(t, g)
}

func TestRelativePath(t *testing.T) { onEachVersion(t, testRelativePath) }

func testRelativePath(t *testing.T) {
	t.Helper()
	name := uniquePath(t)[1:]
	own, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"": filepath.Join("/sys/fs/cgroup", filepath.Dir(own[""]), name)}
	if !cgroups.IsCgroup2UnifiedMode() {
		want = map[string]string{
			"memory": filepath.Join("/sys/fs/cgroup/memory", own["memory"], name),
			"pids":   filepath.Join("/sys/fs/cgroup/pids", own["pids"], name),
		}
	}
	for _, path := range []string{name, "../../" + name, ""} {
		g, err := New(name, path, false)
		if err != nil {
			t.Fatal(err)
		}
		for controller, dir := range want {
			if g.Paths[controller] != dir {
				t.Errorf("%q: %s group is %s, want %s", path, controller, g.Paths[controller], dir)
			}
		}
	}
	g := newGroup(t, name)
	sleep := startSleep(t)
	join(t, g, sleep.Process.Pid)
	_ = sleep.Process.Kill()
	remove(t, g)
	for _, dir := range g.Paths {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
}

func TestCpusetIsUsable(t *testing.T) {
	// A v1 cpuset group has no CPUs and memory nodes at first and then accepts no process, so
	// both levels have to inherit them.
	path := uniquePath(t)
	g := newGroup(t, path+"/deep/leaf")
	dir, ok := g.Paths["cpuset"]
	if !ok {
		t.Skip("no v1 cpuset on this machine")
	}
	sleep := startSleep(t)
	join(t, g, sleep.Process.Pid)
	if cpus, err := cgroups.ReadFile(dir, "cpuset.cpus"); err != nil || strings.TrimSpace(cpus) == "" {
		t.Errorf("cpuset.cpus is %q, %v", cpus, err)
	}
	_ = sleep.Process.Kill()
	remove(t, g)
	parents := &Group{Paths: map[string]string{}}
	for c, leaf := range g.Paths {
		if _, err := os.Stat(leaf); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", leaf, err)
		}
		if _, err := os.Stat(filepath.Dir(leaf)); err != nil {
			t.Errorf("the parent, which others may share, is gone: %v", err)
		}
		parents.Paths[c] = filepath.Dir(filepath.Dir(leaf))
	}
	remove(t, parents)
}

func TestRefusesOccupiedGroup(t *testing.T) {
	path := uniquePath(t)
	g := newGroup(t, path)
	sleep := startSleep(t)
	join(t, g, sleep.Process.Pid)
	for _, p := range []string{path, filepath.Dir(path)} { // the latter is at the root of every hierarchy
		if _, err := New("other", p, false); err == nil || !strings.Contains(err.Error(), "is not empty") {
			t.Errorf("%s: %v, want a refusal", p, err)
		}
	}
	_ = sleep.Process.Kill()
	remove(t, g)
}

func TestRefusesFrozenGroup(t *testing.T) {
	path := uniquePath(t)
	g := newGroup(t, path)
	dir, ok := g.Paths["freezer"]
	if !ok {
		t.Skip("no v1 freezer on this machine")
	}
	join(t, g, startSleepIn(t, g))
	// This must run first, because a frozen process does not die.
	t.Cleanup(func() {
		if err := cgroups.WriteFile(dir, "freezer.state", "THAWED"); err != nil {
			t.Error(err)
		}
	})
	if err := cgroups.WriteFile(dir, "freezer.state", "FROZEN"); err != nil {
		t.Fatal(err)
	}
	_, err := New("other", path, false)
	if err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("frozen group: %v", err)
	}
}

// startSleepIn starts a process in the group. At the test's end it kills the process and
// removes the group.
func startSleepIn(t *testing.T, g *Group) int {
	t.Cleanup(func() { remove(t, g) })
	return startSleep(t).Process.Pid
}

func TestKeepsGroupsOfOthers(t *testing.T) {
	path := uniquePath(t)
	// A tree of somebody else that is empty at the moment.
	theirs := &Group{Paths: newGroup(t, path).Paths}
	for _, dir := range theirs.Paths {
		if err := os.MkdirAll(dir+"/slot", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g := newGroup(t, path)
	sleep := startSleep(t)
	join(t, g, sleep.Process.Pid)
	_ = sleep.Process.Kill()
	_ = sleep.Wait()
	remove(t, g)
	for _, dir := range theirs.Paths {
		if _, err := os.Stat(dir + "/slot"); err != nil {
			t.Errorf("removed somebody's group: %v", err)
		}
	}
	remove(t, theirs) // removes what is below, too
}

func TestSystemdPaths(t *testing.T) {
	for path, want := range map[string]Unit{
		"":                              {Prefix: "runc", Name: "id"},
		"machine.slice:husk:c1":         {Slice: "machine.slice", Prefix: "husk", Name: "c1"},
		":cri:c2":                       {Prefix: "cri", Name: "c2"},
		"kubepods.slice::x.slice":       {Slice: "kubepods.slice", Name: "x.slice"},
		"/absolute":                     {},
		"a:b:c:d":                       {},
		"system.slice:docker:1234:5678": {},
	} {
		unit, err := parseUnit("id", path)
		if want == (Unit{}) {
			if err == nil || !strings.Contains(err.Error(), `expected cgroupsPath to be of format "slice:prefix:name"`) {
				t.Errorf("%q: %+v, %v, want runc's error", path, unit, err)
			}
			continue
		}
		if err != nil || *unit != want {
			t.Errorf("%q: %+v, %v, want %+v", path, unit, err, want)
		}
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		return
	}
	if _, err := New("id", "", true); err == nil || !strings.Contains(err.Error(), "systemd not running on this host") {
		t.Errorf("without systemd: %v", err)
	}
}
