//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hostFile reads a file of a container's cgroup on the host. It skips the test if the host does
// not have the controller on cgroup v1.
func hostFile(t *testing.T, controller, path, file string) string {
	t.Helper()
	root := filepath.Join("/sys/fs/cgroup", controller)
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		t.Skipf("no %s controller on cgroup v1", controller)
	}
	return strings.TrimSpace(readFile(t, filepath.Join(root, path, file)))
}

func checkHostFile(t *testing.T, controller, path, file, want string) {
	t.Helper()
	if got := hostFile(t, controller, path, file); got != want {
		t.Errorf("%s is %q, want %q", file, got, want)
	}
}

func hostNumber(t *testing.T, controller, path, file string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(hostFile(t, controller, path, file), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestNameOfCgroup: programs look in the name of their cgroup for their container's id and for
// an engine's name.
func TestNameOfCgroup(t *testing.T) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); isVM && err != nil {
		t.Skip("husk does not name the guest's cgroup on a host with cgroup v1")
	}
	t.Parallel()
	e := newEnv(t)
	path := "/" + e.tag + "-some-id"
	seen := e.bundle(withScript("cat /proc/self/cgroup"), withoutNamespace(specs.CgroupNamespace), func(s *specs.Spec) { s.Linux.CgroupsPath = path })
	if out := e.ok("run", "--bundle", seen, e.id()); !strings.Contains(out, path+"\n") {
		t.Errorf("/proc/self/cgroup is %q, want %s in it", out, path)
	}
	unseen := e.bundle(withScript("cat /proc/self/cgroup"), withNamespace(specs.CgroupNamespace, ""), func(s *specs.Spec) { s.Linux.CgroupsPath = path })
	if out := e.ok("run", "--bundle", unseen, e.id()); strings.Contains(out, path) {
		t.Errorf("in a cgroup namespace /proc/self/cgroup is %q", out)
	}
}

// TestLimitsOnHost: on the host engines and the validation suite read a created container's
// limits as they were asked for. From the start on, limits that count the machine have room for
// it.
func TestLimitsOnHost(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	path := "/" + e.tag + "-limits"
	const limit = 48 << 20
	c := e.create(e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) {
		s.Linux.CgroupsPath = path
		bytes, swap, reservation := int64(limit), int64(limit+1<<20), int64(limit/2)
		shares, quota, period, pids := uint64(512), int64(50000), uint64(200000), int64(1000)
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &bytes, Swap: &swap, Reservation: &reservation}
		s.Linux.Resources.CPU = &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period, Cpus: "0"}
		s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	}))
	exact := func() {
		t.Helper()
		checkHostFile(t, "memory", path, "memory.soft_limit_in_bytes", strconv.Itoa(limit/2))
		checkHostFile(t, "cpu", path, "cpu.shares", "512")
		checkHostFile(t, "cpu", path, "cpu.cfs_quota_us", "50000")
		checkHostFile(t, "cpu", path, "cpu.cfs_period_us", "200000")
		checkHostFile(t, "cpuset", path, "cpuset.cpus", "0")
	}
	exact()
	checkHostFile(t, "memory", path, "memory.limit_in_bytes", strconv.Itoa(limit))
	checkHostFile(t, "memory", path, "memory.memsw.limit_in_bytes", strconv.Itoa(limit+1<<20))
	checkHostFile(t, "pids", path, "pids.max", "1000")
	e.ok("start", c.id)
	exact()
	memory, swap := hostNumber(t, "memory", path, "memory.limit_in_bytes"), hostNumber(t, "memory", path, "memory.memsw.limit_in_bytes")
	if memory < limit || swap != memory+1<<20 {
		t.Errorf("limits of a running container: %d bytes of memory, %d with swap, asked for were %d and 1 MiB of swap", memory, swap, limit)
	}
	if isVM && memory < limit+64<<20 {
		t.Errorf("%d bytes leave a virtual machine no room", memory)
	}
	if n := hostNumber(t, "pids", path, "pids.max"); n < 1000 {
		t.Errorf("pids.max of a running container: %d", n)
	}
	for _, pid := range append(e.vmms(), c.pid) {
		if got := controllersOf(t, pid)["memory"]; got != path {
			t.Errorf("memory cgroup of process %d: %s, want %s", pid, got, path)
		}
	}
	c.stop()
	for _, left := range []string{path, path + ".husk-boot"} {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup/memory", left)); err == nil {
			t.Errorf("memory cgroup %s is left after delete", left)
		}
	}
}

// TestUpdateOnHost: update changes both the guest and the host, or neither.
func TestUpdateOnHost(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	path := "/" + e.tag + "-update"
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), withNamespace(specs.CgroupNamespace, ""), func(s *specs.Spec) {
		s.Linux.CgroupsPath = path
		quota, period := int64(60000), uint64(100000)
		s.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}))
	inside := func() string {
		r := c.exec("sh", "-c", "cat /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us").is(0)
		return strings.Join(strings.Fields(r.stdout), " ")
	}
	e.ok("update", "--cpu-quota", "70000", "--cpu-share", "300", c.id)
	checkHostFile(t, "cpu", path, "cpu.cfs_quota_us", "70000")
	checkHostFile(t, "cpu", path, "cpu.shares", "300")
	if got := inside(); got != "70000 100000" {
		t.Errorf("cpu limit inside: %q", got)
	}
	// A CPU that the host does not have: the guest must not get the quota either.
	r := e.do("update", "--cpu-quota", "80000", "--cpuset-cpus", "4000", c.id)
	if r.code == 0 {
		t.Error("CPU 4000 was taken")
	}
	if isVM {
		checkHostFile(t, "cpu", path, "cpu.cfs_quota_us", "70000")
		if got := inside(); got != "70000 100000" {
			t.Errorf("cpu limit inside after an update that failed: %q", got)
		}
		r = e.do("update", "--cpu-quota", "80000", "--memory", "1000g", c.id)
		if r.code == 0 || !strings.Contains(r.stderr, "memory.limit") {
			t.Errorf("1000 GiB: exit code %d, stderr %q", r.code, r.stderr)
		}
		checkHostFile(t, "cpu", path, "cpu.cfs_quota_us", "70000")
	}
	c.stop()
}

// oomEvents counts the events that dockerd and conmon listen to: those of the memory cgroup of
// the container's pid on the host.
func oomEvents(t *testing.T, pid int) func() int {
	t.Helper()
	dir := filepath.Join("/sys/fs/cgroup/memory", controllersOf(t, pid)["memory"])
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		t.Skip("no memory controller on cgroup v1")
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	line := strconv.Itoa(fd) + " " + strconv.Itoa(int(control.Fd()))
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		t.Fatal(err)
	}
	return func() int {
		buf := make([]byte, 8)
		if n, err := unix.Read(fd, buf); err != nil || n != 8 {
			return 0
		}
		return int(buf[0])
	}
}

// TestOOMEvent: if the guest's kernel kills a process because memory is short, husk and the
// host's kernel report an event, and the container's other processes go on.
func TestOOMEvent(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	path := "/" + e.tag + "-oom"
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), withMemory(64), func(s *specs.Spec) {
		s.Linux.CgroupsPath = path
		swap := int64(64 << 20)
		s.Linux.Resources.Memory.Swap = &swap
	}))
	happened := oomEvents(t, c.pid)
	limit := hostFile(t, "memory", path, "memory.limit_in_bytes")
	events := e.start(call{}, "events", "--interval", "1000s", c.id)
	c.exec("testprog", "memory", "200").is(137)
	events.stdout.expect(t, `{"type":"oom","id":"`+c.id+`"}`+"\n")
	eventually(t, "the kernel of the host tells of it", testTimeout, func() bool { return happened() > 0 })
	c.exec("true").is(0)
	eventually(t, "the limit is as it was", testTimeout, func() bool {
		return hostFile(t, "memory", path, "memory.limit_in_bytes") == limit
	})
	if isVM {
		for _, pid := range strings.Fields(hostFile(t, "memory", path, "cgroup.procs")) {
			if comm := readFile(t, "/proc/"+pid+"/cmdline"); strings.Contains(comm, "husk-oom") {
				t.Errorf("process %s is left in the cgroup", pid)
			}
		}
	}
	c.stop()
	events.wait().is(0)
}

// TestOOMWithoutLimit: the same for a container without a limit that has taken all of the
// guest's RAM.
func TestOOMWithoutLimit(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) {
		s.Linux.CgroupsPath = "/" + e.tag + "-oom-ram"
		s.Annotations = map[string]string{"org.huskvm.memory_mib": "512"}
	}))
	happened := oomEvents(t, c.pid)
	events := e.start(call{}, "events", "--interval", "1000s", c.id)
	c.exec("testprog", "memory", "445").is(137)
	events.stdout.expect(t, `{"type":"oom","id":"`+c.id+`"}`+"\n")
	eventually(t, "the kernel of the host tells of it", testTimeout, func() bool { return happened() > 0 })
	e.failure(c.id, "out of memory of the 512 MiB of its virtual machine")
	// The guest's kernel and the agent still have the memory that they need.
	c.exec("true").is(0)
	c.stop()
	events.wait().is(0)
}

// TestOOMOfContainer: the same for the container's first process, which ends the container.
func TestOOMOfContainer(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withArgs("testprog", "memory", "200"), withMemory(64), func(s *specs.Spec) {
		s.Linux.CgroupsPath = "/" + e.tag + "-oom-init"
		swap := int64(64 << 20)
		s.Linux.Resources.Memory.Swap = &swap
	}))
	happened := oomEvents(t, c.pid)
	e.ok("start", c.id)
	c.exits(137)
	if happened() == 0 {
		t.Error("the kernel of the host tells of nothing")
	}
	e.ok("delete", c.id)
}
