//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func withMemory(mib int64) specOption {
	return func(s *specs.Spec) {
		bytes := mib << 20
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &bytes}
	}
}

// TestMemoryLimitKills: the kernel kills a process that uses more memory than allowed by
// SIGKILL. Here it is the container's first process, so the container ends.
func TestMemoryLimitKills(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.do("run", "--bundle", e.bundle(withArgs("testprog", "memory", "200"), withMemory(64)), e.id()).is(137)
	if strings.Contains(r.stdout, "touched") {
		t.Error("200 MiB fitted into a limit of 64 MiB")
	}
}

func TestMemoryWithinLimit(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	if out := e.ok("run", "--bundle", e.bundle(withArgs("testprog", "memory", "100"), withMemory(256)), e.id()); out != "touched 100\n" {
		t.Errorf("stdout %q", out)
	}
}

// TestMemoryUpToLimit: a container can use its limit except for a little that the runtime
// needs, also in the smallest guest.
func TestMemoryUpToLimit(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	if out := e.ok("run", "--bundle", e.bundle(withArgs("testprog", "memory", "116"), withMemory(128)), e.id()); out != "touched 116\n" {
		t.Errorf("stdout %q", out)
	}
}

// TestLargeMemoryLimit: any limit is accepted, also one above the host's memory.
func TestLargeMemoryLimit(t *testing.T) {
	t.Parallel()
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	hostMiB := int64(info.Totalram * uint64(info.Unit) >> 20)
	for _, mib := range []int64{hostMiB * 3 / 4, 2 * hostMiB} {
		e := newEnv(t)
		out := e.ok("run", "--bundle", e.bundle(withScript("awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo"), withMemory(mib)), e.id())
		if got, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64); err != nil || got < min(mib, hostMiB*9/10) || got > hostMiB*11/10 {
			t.Errorf("limit of %d MiB on a host of %d: the container sees %q MiB", mib, hostMiB, out)
		}
	}
}

// TestMemoryWithoutLimit: without a limit a container has as much memory as the host, up to a
// bound.
func TestMemoryWithoutLimit(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	if out := e.ok("run", "--bundle", e.bundle(withArgs("testprog", "memory", "1500")), e.id()); out != "touched 1500\n" {
		t.Errorf("stdout %q", out)
	}
}

// TestMemoryLimitKillsChild: an OOM kill of a child leaves the container alive.
func TestMemoryLimitKillsChild(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.do("run", "--bundle", e.bundle(withScript("testprog memory 200; echo child $?; exit 3"), withMemory(64)), e.id()).is(3)
	if !strings.Contains(r.stdout, "child 137") {
		t.Errorf("stdout %q", r.stdout)
	}
}

func TestPidsLimit(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.do("run", "--bundle", e.bundle(withScript(
		"for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 5 & done; echo all twenty"),
		func(s *specs.Spec) { limit := int64(10); s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit} }), e.id())
	if strings.Contains(r.stdout, "all twenty") || !strings.Contains(r.stderr, "fork") {
		t.Errorf("twenty processes in a limit of ten: exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
}

func TestCPULimit(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	quota, period, shares := int64(20000), uint64(100000), uint64(512)
	c := e.createStarted(e.bundle(withScript("while :; do :; done"), withNamespace(specs.CgroupNamespace, ""), func(s *specs.Spec) {
		s.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares}
	}))
	limit := c.exec("sh", "-c", "cat /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us").is(0)
	if got := strings.Join(strings.Fields(limit.stdout), " "); got != "20000 100000" {
		t.Errorf("cpu limit inside: %q", got)
	}
	c.stop()
}

// controllersOf returns the cgroup path of a process by controller.
func controllersOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/cgroup", pid))) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for name := range strings.SplitSeq(parts[1], ",") {
			found[name] = parts[2]
		}
	}
	return found
}

// TestCgroupOfPID: docker stats, podman stats and kubelet read the host cgroup of the pid.
func TestCgroupOfPID(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	path := "/" + e.tag + "-slice/" + e.tag + "-scope"
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) { s.Linux.CgroupsPath = path }))
	controllers := controllersOf(t, c.pid)
	for _, name := range []string{"memory", "cpu", "cpuacct", "pids", "freezer", "devices"} {
		mount := filepath.Join("/sys/fs/cgroup", name)
		if _, err := os.Stat(mount + "/cgroup.procs"); err != nil {
			continue // not mounted, for example in the outer machine of the KVM test bed
		}
		if got := controllers[name]; got != path {
			t.Errorf("%s cgroup of the pid: %s, want %s", name, got, path)
		}
	}
	if usage, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/memory", path, "memory.usage_in_bytes")); err == nil {
		n, _ := strconv.Atoi(strings.TrimSpace(string(usage)))
		if n < 1<<10 {
			t.Errorf("memory usage on the host: %d bytes", n)
		}
		if isVM && n < 10<<20 {
			t.Errorf("memory usage on the host is %d bytes: the vmm is not in the container's cgroup", n)
		}
	}
	c.stop()
	for name := range controllers {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", name, path)); err == nil {
			t.Errorf("%s cgroup is left after delete", name)
		}
		_ = os.Remove(filepath.Join("/sys/fs/cgroup", name, filepath.Dir(path))) // the parent is the caller's
	}
	_ = os.Remove(filepath.Join("/sys/fs/cgroup/systemd", filepath.Dir(path)))
	_ = os.Remove(filepath.Join("/sys/fs/cgroup/unified", filepath.Dir(path)))
}

// TestTightLimitAtCreate: a tight limit with the OOM killer disabled, set at create, must not
// hang or kill the runtime's own processes. The validation suite does this (linux_cgroups_*).
func TestTightLimitAtCreate(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	began := time.Now()
	c := e.createStarted(e.bundle(withScript("echo fits"), func(s *specs.Spec) {
		limit, disable := int64(48<<20), true
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, DisableOOMKiller: &disable}
		s.Linux.CgroupsPath = "/" + e.id()
	}))
	c.exits(0)
	t.Logf("took %v", time.Since(began).Round(time.Millisecond))
	if c.stdout.String() != "fits\n" {
		t.Errorf("stdout %q", c.stdout)
	}
	e.ok("delete", c.id)
}
