package libcontainer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestCgroup(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	spec := newSpec(rootfs, "echo ready; sleep 1000 & sleep 1000 & wait")
	c := start(t, &Config{Spec: spec, CgroupRoot: root, CgroupPath: name})
	ready := make([]byte, 6)
	if _, err := io.ReadFull(c.Init().Stdout, ready); err != nil {
		t.Fatal(err)
	}
	p, err := c.Exec(newProcess("exec sleep 1000"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.CloseIO()
	pids, err := c.Pids()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(pids, c.Init().PID()) || !slices.Contains(pids, p.PID()) {
		t.Errorf("pids %v lack %d or %d", pids, c.Init().PID(), p.PID())
	}
	equal(t, "cgroup seen inside", exec(t, c, "grep ^0:: /proc/self/cgroup").out, "0::/\n")
	if s, err := c.Stats(); err != nil || s.CPU.UsageUsec == 0 {
		t.Errorf("stats %+v, %v", s, err)
	}

	if err := c.Pause(); err != nil {
		t.Fatal(err)
	}
	equal(t, "cgroup.freeze", read(t, root+name+"/cgroup.freeze"), "1\n")
	contains(t, "cgroup.events", read(t, root+name+"/cgroup.events"), "frozen 1")
	if _, err := c.Exec(newProcess("true"), false); err == nil || err.Error() != "cannot exec in a paused container" {
		t.Errorf("exec while paused: %v", err)
	}
	if err := c.Resume(); err != nil {
		t.Fatal(err)
	}
	equal(t, "exec after resume", exec(t, c, "exit 6").code, 6)

	if err := c.Kill(unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	equal(t, "init's code", wait(t, c.Init()).Code, 137)
	equal(t, "exec's code", wait(t, p).Code, 137)
	if err := c.Pause(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("pause of a stopped one: %v", err)
	}
	if err := c.Kill(unix.SIGKILL, true); err != nil {
		t.Errorf("kill all of a stopped one: %v", err)
	}
	if err := c.Destroy(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cgroup is left: %v", err)
	}
	if err := c.Destroy(); err != nil {
		t.Errorf("second destroy: %v", err)
	}
}

func TestSignalAll(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	const trap = "trap 'exit 9' TERM; echo ready; while :; do sleep 1000 & wait; done"
	c := start(t, &Config{Spec: newSpec(rootfs, trap), CgroupRoot: root, CgroupPath: name})
	p, err := c.Exec(newProcess(trap), false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.CloseIO()
	ready := make([]byte, 6)
	for _, r := range []io.Reader{c.Init().Stdout, p.Stdout} {
		if _, err := io.ReadFull(r, ready); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Kill(unix.SIGTERM, true); err != nil {
		t.Fatal(err)
	}
	equal(t, "init's code", wait(t, c.Init()).Code, 9)
	// The exit of PID 1 may be reported before that of the exec'd process.
	if code := wait(t, p).Code; code != 9 && code != 137 {
		t.Errorf("exec's code %d", code)
	}
}

// TestDestroyWithoutPIDNamespace: Destroy ends processes that the first process has left
// behind.
func TestDestroyWithoutPIDNamespace(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	spec := newSpec(rootfs, "setsid sleep 1000 >/dev/null 2>&1 </dev/null & exit 0")
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:]
	// /proc is the caller's there, in which masked files could not be told from others.
	c := start(t, &Config{Spec: spec, CgroupRoot: root, CgroupPath: name})
	equal(t, "init's code", wait(t, c.Init()).Code, 0)
	pids, err := c.Pids()
	if err != nil || len(pids) != 1 {
		t.Fatalf("pids %v, %v: want the one left behind", pids, err)
	}
	if err := c.Destroy(); err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile(procFile(pids[0], "comm"))
	if err == nil && strings.TrimSpace(string(comm)) == "sleep" {
		st, _ := os.ReadFile(procFile(pids[0], "stat"))
		if !strings.Contains(string(st), ") Z ") { // an orphan that its new parent has not reaped yet
			t.Errorf("process %d is left: %s", pids[0], st)
		}
	}
}

func TestCgroupInUse(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	c := create(t, &Config{Spec: newSpec(rootfs, "true"), CgroupRoot: root, CgroupPath: name})
	_, err := Create(&Config{ID: "second", Spec: newSpec(rootfs, "true"), CgroupRoot: root, CgroupPath: name})
	want := "container's cgroup is not empty: 1 process(es) found"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if c.Init().ended() {
		t.Error("the failed create ended the container that has the cgroup")
	}
}

// TestOwnCgroups: a container may make cgroups below its own and move its processes there.
func TestOwnCgroups(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	spec := newSpec(rootfs, "mkdir -p /cg/a/b && echo 1 >/cg/a/b/cgroup.procs && grep 0:: /proc/self/cgroup; exec sleep 1000")
	addMount(spec, "cgroup", "/cg", "cgroup", "nosuid", "memory")
	c := start(t, &Config{Spec: spec, CgroupRoot: root, CgroupPath: name})
	line := make([]byte, len("0::/a/b\n"))
	if _, err := io.ReadFull(c.Init().Stdout, line); err != nil {
		t.Fatal(err)
	}
	equal(t, "cgroup", string(line), "0::/a/b\n")
	pids, err := c.Pids()
	if err != nil || !slices.Contains(pids, c.Init().PID()) {
		t.Errorf("pids %v, %v", pids, err)
	}
	equal(t, "exec", exec(t, c, "exit 4").code, 4)
	if err := c.Destroy(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cgroup is left: %v", err)
	}
}

func TestCgroupMountWithoutNamespace(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	spec := newSpec(rootfs, "cat /cg/cgroup.procs; touch /cg/x; mkdir /cg/d || echo refused")
	spec.Linux.Namespaces = spec.Linux.Namespaces[:5]
	addMount(spec, "cgroup", "/cg", "cgroup", "ro")
	c := start(t, &Config{Spec: spec, CgroupRoot: root, CgroupPath: name})
	o := collect(t, c.Init())
	contains(t, "stdout", o.out, "1\n")
	contains(t, "stdout", o.out, "refused\n")
}

func TestMissingController(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	controllers := read(t, filepath.Join(root, "cgroup.controllers"))
	if strings.Contains(controllers, "memory") {
		testMemoryLimit(t, rootfs, root, name)
		return
	}
	spec := newSpec(rootfs, "true")
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 30))}}
	_, err := Create(&Config{ID: "x", Spec: spec, CgroupRoot: root, CgroupPath: name})
	want := fmt.Sprintf("set memory.max: the memory controller is not available in cgroup %s%s", root, name)
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if _, err := os.Stat(root + name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cgroup is left: %v", err)
	}
}

// testMemoryLimit runs on machines whose cgroup2 has the memory controller.
func testMemoryLimit(t *testing.T, rootfs, root, name string) {
	t.Helper()
	spec := newSpec(rootfs, "exec dd if=/dev/zero of=/dev/null bs=200M count=1")
	spec.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(1))},
	}
	c := start(t, &Config{Spec: spec, CgroupRoot: root, CgroupPath: name})
	st := wait(t, c.Init())
	equal(t, "status", st, ExitStatus{137, true})
	s, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "memory limit", s.Memory.Limit, 64<<20)
	equal(t, "swap limit", s.Memory.SwapLimit, 0)
	equal(t, "pids limit", s.Pids.Limit, 1)
	if s.Memory.OOMKills == 0 {
		t.Error("no OOM kill was counted")
	}
}

func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		name string
		r    *specs.LinuxResources
		want []setting
		err  string
	}{
		{"nil", nil, nil, ""},
		{"empty ones of engines", &specs.LinuxResources{
			Memory: &specs.LinuxMemory{DisableOOMKiller: ptr(false)}, CPU: &specs.LinuxCPU{}, Pids: &specs.LinuxPids{},
			BlockIO: &specs.LinuxBlockIO{}, Network: &specs.LinuxNetwork{},
		}, nil, ""},
		{"memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{
			Limit: ptr(int64(1000)), Swap: ptr(int64(1500)), Reservation: ptr(int64(500)),
		}}, []setting{{"memory.swap.max", "500"}, {"memory.max", "1000"}, {"memory.low", "500"}}, ""},
		{
			"no swap", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(9)), Swap: ptr(int64(9))}},
			[]setting{{"memory.swap.max", "0"}, {"memory.max", "9"}},
			"",
		},
		{
			"unlimited", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}, Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}},
			[]setting{{"memory.swap.max", "max"}, {"memory.max", "max"}, {"pids.max", "max"}},
			"",
		},
		{"cpu", &specs.LinuxResources{CPU: &specs.LinuxCPU{
			Shares: ptr(uint64(1024)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Burst: ptr(uint64(7)), Cpus: "0-1", Mems: "0",
		}}, []setting{{"cpu.weight", "100"}, {"cpu.max", "50000 100000"}, {"cpu.max.burst", "7"}, {"cpuset.cpus", "0-1"}, {"cpuset.mems", "0"}}, ""},
		{"quota only", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}}, []setting{{"cpu.max", "max"}}, ""},
		{"period only", &specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr(uint64(5))}}, []setting{{"cpu.max", "keep 5"}}, ""},
		{
			"unified", &specs.LinuxResources{Unified: map[string]string{"memory.high": "5", "cpu.weight": "3"}},
			[]setting{{"cpu.weight", "3"}, {"memory.high", "5"}},
			"",
		},
		{"unified path", &specs.LinuxResources{Unified: map[string]string{"../x.y": ""}}, nil, `unified resource "../x.y" must be a file name (no slashes)`},
		{"unified core", &specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}, nil, `unified resource "cgroup.procs" is not a resource`},
		{"swap without memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(5))}}, nil, "unable to set swap limit without memory limit"},
		{"swap below memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(6)), Swap: ptr(int64(5))}}, nil, "memory+swap limit should be >= memory limit"},
		{"blockIO", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(5))}}, nil, "linux.resources.blockIO is not supported"},
		{"rdma", &specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"x": {}}}, nil, "linux.resources.rdma is not supported"},
		{"swappiness", &specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(5))}}, nil, "linux.resources.memory.swappiness is not supported"},
		{"realtime", &specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimePeriod: ptr(uint64(5))}}, nil, "linux.resources.cpu.realtimePeriod is not supported"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := settings(tt.r)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if text != tt.err || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%s: %v, %q; want %v, %q", tt.name, got, text, tt.want, tt.err)
			}
		})
	}
	for shares, want := range map[uint64]uint64{1: 1, 2: 1, 1024: 100, 2048: 174, 262144: 10000, 1 << 40: 10000} {
		equal(t, "weight of "+strconv.FormatUint(shares, 10), cpuWeight(shares), want)
	}
}

// TestCgroupFiles uses a directory of plain files, because the machine's cgroup2 may lack the
// controllers.
func TestCgroupFiles(t *testing.T) {
	dir := t.TempDir()
	for file, text := range map[string]string{
		"cpu.max": "max 100000\n", "cpu.stat": "usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_throttled 4\n",
		"memory.current": "4096\n", "memory.max": "max\n", "memory.swap.max": "0\n", "memory.stat": "anon 1\nfile 2\n",
		"memory.events": "low 0\nmax 3\noom 2\noom_kill 1\n", "pids.current": "7\n", "pids.max": "max\n",
	} {
		write(t, filepath.Join(dir, file), text)
	}
	c := &cgroup{dir: dir}
	s, err := c.stats()
	if err != nil {
		t.Fatal(err)
	}
	want := &Stats{
		CPU: CPUStats{UsageUsec: 30, UserUsec: 10, SystemUsec: 20, ThrottledPeriods: 4},
		Memory: MemoryStats{
			Usage: 4096, Limit: 1<<64 - 1, FailCount: 3, OOMKills: 1,
			Stat: map[string]uint64{"anon": 1, "file": 2},
		},
		Pids: PidsStats{Current: 7},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("stats %+v, want %+v", s, want)
	}
	if !c.oomKilled() {
		t.Error("the OOM kill was not seen")
	}
	if err := c.apply([]setting{{"cpu.max", "keep 5"}}, nil); err != nil {
		t.Fatal(err)
	}
	// In a plain file a shorter value leaves the end of the longer one: "max 5" over "max
	// 100000".
	equal(t, "period with the quota there was", read(t, filepath.Join(dir, "cpu.max")), "max 500000\n")
	// 4096 bytes are in use, 2 of them can be reclaimed.
	stat := "anon 4094\nfile 2\nactive_file 1\ninactive_file 1\n"
	if err := os.WriteFile(filepath.Join(dir, "memory.stat"), []byte(stat), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		limit  string
		strict bool
		ok     bool
	}{{"5", false, false}, {"5", true, false}, {"4094", false, true}, {"4094", true, false}, {"4096", true, true}, {"max", true, true}} {
		t.Run(tc.limit, func(t *testing.T) {
			err := c.checkMemory([]setting{{"memory.low", "1"}, {"memory.max", tc.limit}}, tc.strict)
			if (err == nil) != tc.ok {
				t.Errorf("limit %s, strict %v: %v", tc.limit, tc.strict, err)
			}
		})
	}
	if err := c.checkMemory([]setting{{"pids.max", "1"}}, true); err != nil {
		t.Error(err)
	}
}
