package cgroup

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/specconv"
)

const mib = 1 << 20

// resources parses limits in the JSON format of config.json.
func resources(t *testing.T, text string) *specs.LinuxResources {
	t.Helper()
	r := &specs.LinuxResources{}
	if err := json.Unmarshal([]byte(text), r); err != nil {
		t.Fatal(err)
	}
	return r
}

func checkFile(t *testing.T, g *Group, controller, name, want string) {
	t.Helper()
	dir, found := g.Paths[controller]
	if !found {
		t.Skipf("no v1 %s on this machine", controller)
	}
	got, err := cgroups.ReadFile(dir, name)
	if err != nil || strings.TrimSpace(got) != want {
		t.Errorf("%s is %q, %v, want %q", name, strings.TrimSpace(got), err, want)
	}
}

func apply(t *testing.T, g *Group, text string, created bool) *Change {
	t.Helper()
	c := g.Change(resources(t, text), created)
	if err := c.Apply(); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return c
}

// TestLimits goes through a container's life: created with the limits it asks for, started with
// room for the machine, updated, and updated with an error.
func TestLimits(t *testing.T) {
	path := uniquePath(t)
	g := newGroup(t, path)
	if _, found := g.Paths["memory"]; !found {
		t.Skip("no v1 memory on this machine")
	}
	g.Room = Room{RAM: 256 * mib, Memory: 100 * mib}
	const asked = `{"memory":{"limit":50593792,"swap":61079552,"reservation":50593792,"swappiness":10,"disableOOMKiller":true,"kernelTCP":50593792},
		"cpu":{"shares":2048,"quota":50000,"period":500000,"cpus":"0","mems":"0"},"pids":{"limit":1000}}`
	g.Limits = g.Change(resources(t, asked), true).Limits
	g.PlanBootGroup()
	pid := startSleepIn(t, g)
	join(t, g, pid)
	if err := g.JoinBootGroup(pid); err != nil {
		t.Fatal(err)
	}
	if c := apply(t, g, asked, true); len(c.Dropped) > 0 {
		t.Errorf("dropped %q", c.Dropped)
	}
	exact := func() {
		t.Helper()
		checkFile(t, g, "memory", "memory.soft_limit_in_bytes", "50593792")
		checkFile(t, g, "memory", "memory.swappiness", "10")
		checkFile(t, g, "memory", "memory.kmem.tcp.limit_in_bytes", "50593792")
		checkFile(t, g, "cpu", "cpu.shares", "2048")
		checkFile(t, g, "cpu", "cpu.cfs_quota_us", "50000")
		checkFile(t, g, "cpu", "cpu.cfs_period_us", "500000")
		checkFile(t, g, "cpuset", "cpuset.cpus", "0")
	}
	exact()
	checkFile(t, g, "memory", "memory.limit_in_bytes", "50593792")
	checkFile(t, g, "memory", "memory.memsw.limit_in_bytes", "61079552")
	checkFile(t, g, "pids", "pids.max", "1000")
	checkOOMControl(t, g, 1)
	if pids, _ := cgroups.GetPids(g.Boot); !g.HasBootGroup() || !slices.Contains(pids, pid) {
		t.Errorf("held %v, processes %v", g.HasBootGroup(), pids)
	}

	// Another process would load it in this way.
	saved, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	var loaded Group
	if err := json.Unmarshal(saved, &loaded); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := loaded.MakeRoom(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(g.Boot); err == nil {
		t.Errorf("%s is left", g.Boot)
	}
	exact()
	const room = 356 * mib
	checkFile(t, g, "memory", "memory.limit_in_bytes", strconv.Itoa(room))
	checkFile(t, g, "memory", "memory.memsw.limit_in_bytes", strconv.Itoa(room+10*mib))
	checkFile(t, g, "pids", "pids.max", "16512")
	checkOOMControl(t, g, 0)
	if pids, _ := cgroups.GetPids(g.Paths["memory"]); !slices.Contains(pids, pid) {
		t.Errorf("processes %v", pids)
	}
	testUpdates(t, &loaded)
}

func checkOOMControl(t *testing.T, g *Group, want int64) {
	t.Helper()
	text, err := cgroups.ReadFile(g.Paths["memory"], "memory.oom_control")
	if got, found := findKey(text, "oom_kill_disable"); err != nil || !found || got != want {
		t.Errorf("memory.oom_control is %q, %v, want oom_kill_disable %d", text, err, want)
	}
}

func testUpdates(t *testing.T, g *Group) {
	t.Helper()
	// Each update changes one of several values that depend on each other.
	apply(t, g, `{"cpu":{"period":900000}}`, false)
	checkFile(t, g, "cpu", "cpu.cfs_quota_us", "50000")
	checkFile(t, g, "cpu", "cpu.cfs_period_us", "900000")
	apply(t, g, `{"cpu":{"quota":600000}}`, false)
	checkFile(t, g, "cpu", "cpu.cfs_quota_us", "600000")
	checkFile(t, g, "cpu", "cpu.cfs_period_us", "900000")
	apply(t, g, `{"cpu":{"quota":-1},"pids":{"limit":-1}}`, false)
	checkFile(t, g, "cpu", "cpu.cfs_quota_us", "-1")
	checkFile(t, g, "pids", "pids.max", "max")
	apply(t, g, `{"memory":{"limit":419430400,"swap":-1}}`, false)
	checkFile(t, g, "memory", "memory.limit_in_bytes", strconv.Itoa(500*mib))
	unlimitedText, err := cgroups.ReadFile("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
	if err != nil {
		t.Fatal(err)
	}
	checkFile(t, g, "memory", "memory.memsw.limit_in_bytes", strings.TrimSpace(unlimitedText))

	// All or nothing: the last limit is for a CPU that does not exist.
	before := everything(t, g)
	c := g.Change(resources(t, `{"memory":{"limit":943718400,"reservation":1048576,"swappiness":77},"pids":{"limit":7},
		"cpu":{"shares":3,"quota":70000,"period":100000,"cpus":"8000"},
		"blockIO":{"throttleReadBpsDevice":[{"major":1,"minor":0,"rate":5}]}}`), false)
	if err := c.Apply(); err == nil || !strings.HasPrefix(err.Error(), "set limits of cgroup: ") {
		t.Errorf("CPU 8000: %v", err)
	}
	if after := everything(t, g); !maps.Equal(before, after) {
		t.Errorf("an update that failed has changed the group:\n%v\n%v", before, after)
	}
	// A change that succeeded can be undone.
	c = apply(t, g, `{"memory":{"limit":943718400,"swap":953718400},"pids":{"limit":7},"cpu":{"shares":3}}`, false)
	if maps.Equal(before, everything(t, g)) {
		t.Error("the update has changed nothing")
	}
	if err := c.Undo(); err != nil {
		t.Error(err)
	}
	if after := everything(t, g); !maps.Equal(before, after) {
		t.Errorf("undone is:\n%v\nbefore was:\n%v", after, before)
	}
}

// everything returns the content of all files that hold limits.
func everything(t *testing.T, g *Group) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, c := range v1Controllers {
		for _, name := range c.files {
			if b, err := os.ReadFile(filepath.Join(g.Paths[c.name], name)); err == nil {
				all[name] = string(b)
			}
		}
	}
	if len(all) == 0 {
		t.Fatal("read nothing")
	}
	return all
}

// TestRemoveNeverStarted removes a container that was never started.
func TestRemoveNeverStarted(t *testing.T) {
	g := newGroup(t, uniquePath(t))
	g.PlanBootGroup()
	if g.Boot == "" {
		t.Skip("no v1 memory on this machine")
	}
	sleep := startSleep(t)
	join(t, g, sleep.Process.Pid)
	if err := g.JoinBootGroup(sleep.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Pids(); err != nil || !slices.Equal(pids, []int{sleep.Process.Pid}) {
		t.Errorf("pids %v, %v", pids, err)
	}
	if err := g.LeaveBootGroup(sleep.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if pids, err := cgroups.GetPids(g.Paths["memory"]); err != nil || !slices.Equal(pids, []int{sleep.Process.Pid}) {
		t.Errorf("shown %v, %v", pids, err)
	}
	_ = sleep.Process.Kill()
	remove(t, g)
	if g.HasBootGroup() {
		t.Errorf("%s is left", g.Boot)
	}
}

// TestDeviceRules: the rules can be read one by one and in order, as the OCI validation suite
// expects.
func TestDeviceRules(t *testing.T) {
	g := newGroup(t, uniquePath(t))
	if _, found := g.Paths["devices"]; !found {
		t.Skip("no v1 devices on this machine")
	}
	join(t, g, startSleepIn(t, g))
	apply(t, g, `{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"},
		{"allow":true,"type":"b","major":8,"minor":20,"access":"rw"},{"allow":true,"type":"b","major":10,"minor":200,"access":"r"},
		{"allow":true,"type":"c","major":-1,"minor":7}]}`, true)
	list, err := cgroups.ReadFile(g.Paths["devices"], "devices.list")
	const want = "c 10:229 rwm\nb 8:20 rw\nb 10:200 r\nc *:7 rwm\nc *:* m\n"
	if err != nil || !strings.HasPrefix(list, want) {
		t.Errorf("devices.list: %v\n%s\nwant first\n%s", err, list, want)
	}
}

// TestDropped: fields that the machine cannot enforce are named, except those that the guest
// enforces too.
func TestDropped(t *testing.T) {
	const asked = `{"memory":{"limit":5,"swappiness":3,"disableOOMKiller":true},"cpu":{"shares":3,"mems":"0","realtimeRuntime":5,"cpus":"0"},
		"pids":{"limit":4},"blockIO":{"weight":10},"hugepageLimits":[{"pageSize":"2MB","limit":0}],"network":{"classID":1,"priorities":[{"name":"a","priority":1}]},
		"rdma":{"a":{"hcaHandles":1}},"unified":{"io.weight":"1","memory.high":"7"},"devices":[{"allow":false}]}`
	const none = ": dropped: this machine has no "
	want := []string{
		`linux.resources.unified["io.weight"]: dropped: the host has cgroup v1`,
		"linux.resources.memory.disableOOMKiller" + none + "memory controller for it",
		"linux.resources.memory.swappiness" + none + "memory controller for it",
		"linux.resources.cpu.realtimeRuntime" + none + "cpu controller for it",
		"linux.resources.cpu.mems" + none + "cpuset controller for it",
		"linux.resources.blockIO" + none + "blkio controller for it",
		"linux.resources.hugepageLimits" + none + "hugetlb controller for it",
		"linux.resources.network.classID" + none + "net_cls controller for it",
		"linux.resources.network.priorities" + none + "net_prio controller for it",
		"linux.resources.rdma" + none + "rdma controller for it",
	}
	g := &Group{Paths: map[string]string{"pids": "/sys/fs/cgroup/pids/x", "memory": "/sys/fs/cgroup/memory/x"}, Skipped: map[string]string{"pids": "", "memory": ""}}
	c := g.Change(resources(t, asked), true)
	if !slices.Equal(texts(c.Dropped), want) {
		t.Errorf("dropped\n%s\nwant\n%s", strings.Join(texts(c.Dropped), "\n"), strings.Join(want, "\n"))
	}
	if len(c.parts) > 0 {
		t.Errorf("%d parts are left to set", len(c.parts))
	}
	v2 := &Group{Paths: map[string]string{"": "/sys/fs/cgroup/x"}}
	want = nil
	for _, field := range []string{"cpu.realtimeRuntime", "memory.disableOOMKiller", "memory.swappiness", "network.classID", "network.priorities"} {
		want = append(want, "linux.resources."+field+": dropped: cgroup v2 does not have it")
	}
	if c := v2.Change(resources(t, asked), true); !slices.Equal(texts(c.Dropped), want) {
		t.Errorf("cgroup v2 drops\n%s\nwant\n%s", strings.Join(texts(c.Dropped), "\n"), strings.Join(want, "\n"))
	}
}

func texts(dropped []specconv.Dropped) (all []string) {
	for _, d := range dropped {
		all = append(all, d.String())
	}
	return all
}

// TestConvert tests what the library gets.
func TestConvert(t *testing.T) {
	room := Room{RAM: 512 * mib, Memory: 100 * mib}
	apart := room
	apart.created, apart.inBootGroup = true, true
	created := room
	created.created = true
	for _, c := range []struct {
		name, now, asked string
		room             Room
		want             cgroups.Resources
	}{
		{"nothing", `{}`, `{}`, room, cgroups.Resources{}},
		{"zeros", `{}`, `{"memory":{"limit":0,"swap":0},"cpu":{"shares":0,"quota":0,"period":0},"pids":{"limit":0},"blockIO":{"weight":0}}`, room, cgroups.Resources{}},
		{"less than the RAM", `{}`, `{"memory":{"limit":1000}}`, room, cgroups.Resources{Memory: 612 * mib}},
		{"more than the RAM", `{}`, `{"memory":{"limit":1073741824}}`, room, cgroups.Resources{Memory: 1124 * mib}},
		{"apart", `{}`, `{"memory":{"limit":104857600,"swap":104857700}}`, apart, cgroups.Resources{Memory: 100 * mib, MemorySwap: 104857700}},
		{"too little for the supervisor", `{}`, `{"memory":{"limit":1000,"swap":1000}}`, apart, cgroups.Resources{Memory: 32 * mib, MemorySwap: 32 * mib}},
		{"none", `{}`, `{"memory":{"limit":-1,"swap":-1}}`, room, cgroups.Resources{Memory: -1, MemorySwap: -1}},
		{"too much", `{}`, `{"memory":{"limit":9223372036854775807}}`, room, cgroups.Resources{Memory: -1}},
		{"swap alone", `{"memory":{"limit":1000}}`, `{"memory":{"swap":1500}}`, room, cgroups.Resources{Memory: 612 * mib, MemorySwap: 612*mib + 500}},
		{"the killer stays", `{}`, `{"memory":{"disableOOMKiller":true}}`, created, cgroups.Resources{}},
		{"not apart", `{}`, `{"memory":{"disableOOMKiller":true}}`, apart, cgroups.Resources{OomKillDisable: true}},
		{"no swappiness", `{}`, `{"memory":{"swappiness":18446744073709551615}}`, room, cgroups.Resources{}},
		{"a quota", `{}`, `{"cpu":{"quota":7000}}`, room, cgroups.Resources{CpuQuota: 7000}},
		{"a quota too small for the machine", `{}`, `{"cpu":{"quota":1000,"period":100000}}`, room, cgroups.Resources{CpuQuota: 5000, CpuPeriod: 100000}},
		{"a period", `{"cpu":{"quota":7000}}`, `{"cpu":{"period":50000}}`, room, cgroups.Resources{CpuQuota: 7000, CpuPeriod: 50000}},
		{"a period that makes a quota too small", `{"cpu":{"quota":7000}}`, `{"cpu":{"period":1000000}}`, room, cgroups.Resources{CpuQuota: 50000, CpuPeriod: 1000000}},
		{"shares", `{}`, `{"cpu":{"shares":1024}}`, room, cgroups.Resources{CpuShares: 1024, CpuWeight: 100}},
		{"tasks", `{}`, `{"pids":{"limit":10}}`, room, cgroups.Resources{PidsLimit: ptr(int64(672))}},
		{"few tasks of a created container", `{}`, `{"pids":{"limit":10}}`, created, cgroups.Resources{PidsLimit: ptr(int64(672))}},
		{"many tasks of a created container", `{}`, `{"pids":{"limit":1000}}`, created, cgroups.Resources{PidsLimit: ptr(int64(1000))}},
		{"any number of tasks", `{}`, `{"pids":{"limit":-1}}`, room, cgroups.Resources{PidsLimit: ptr(int64(-1))}},
		{
			"unified", `{}`, `{"unified":{"memory.max":"1000","memory.high":"max","memory.min":"5","pids.max":"0","cpu.max":"7 8","io.weight":"5"}}`, room,
			cgroups.Resources{Unified: map[string]string{
				"memory.max": strconv.Itoa(612 * mib), "memory.high": "max", "memory.min": "5", "pids.max": "528", "cpu.max": "7 8", "io.weight": "5",
			}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			now, asked := resources(t, c.now), resources(t, c.asked)
			if got := convert(asked, merge(now, asked), c.room); !reflect.DeepEqual(*got, c.want) {
				t.Errorf("%s:\n got %+v\nwant %+v", c.name, *got, c.want)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func TestLowerLimit(t *testing.T) {
	g := newGroup(t, uniquePath(t))
	if _, found := g.Paths["memory"]; !found {
		t.Skip("no v1 memory on this machine")
	}
	join(t, g, startSleepIn(t, g))
	apply(t, g, `{"memory":{"limit":104857600,"swappiness":33}}`, false)
	o, err := g.OpenOOM()
	if err != nil || o == nil {
		t.Fatal(o, err)
	}
	used, cache, err := o.Used()
	if err != nil || used < cache || cache < 0 {
		t.Errorf("%d bytes are used, %d of them cache, %v", used, cache, err)
	}
	if kills, err := o.Kills(); err != nil || kills != 0 {
		t.Errorf("%d kills, %v", kills, err)
	}
	restore, err := o.LowerLimit(50 * mib)
	if err != nil {
		t.Fatal(err)
	}
	checkFile(t, g, "memory", "memory.limit_in_bytes", strconv.Itoa(50*mib))
	checkFile(t, g, "memory", "memory.swappiness", "0")
	if err := restore(); err != nil {
		t.Error(err)
	}
	checkFile(t, g, "memory", "memory.limit_in_bytes", strconv.Itoa(100*mib))
	checkFile(t, g, "memory", "memory.swappiness", "33")
	if _, err := o.LowerLimit(-5); err == nil {
		t.Error("a limit of -5 bytes was taken")
	}
	checkFile(t, g, "memory", "memory.swappiness", "33")
	// The only process of the group sleeps, so there is hardly any cache.
	if err := o.DropCache(1 << 40); err != nil {
		t.Error(err)
	}
	if _, cache, err := o.Used(); err != nil || cache > mib {
		t.Errorf("%d bytes of cache are left, %v", cache, err)
	}
	checkFile(t, g, "memory", "memory.limit_in_bytes", strconv.Itoa(100*mib))
	checkFile(t, g, "memory", "memory.swappiness", "33")
	if o, err := (&Group{Paths: map[string]string{"pids": "/x"}}).OpenOOM(); o != nil || err != nil {
		t.Errorf("without memory: %v, %v", o, err)
	}
}
