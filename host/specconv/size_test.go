package specconv

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestMemoryClass(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		limit   int64
		hostMiB int
		want    int
	}{
		{0, 0, 0},
		{-1, 0, 0},
		{1, 0, 256},
		{64 * mib, 0, 256},
		{128 * mib, 0, 256},
		{129 * mib, 0, 256},
		{130 * mib, 0, 512},
		{512 * mib, 0, 1024},
		{1 << 30, 0, 2048},
		{math.MaxInt64, 0, 1 << 20},
		{256 * mib, 0, 512},
		{378 * mib, 0, 512},
		{379 * mib, 0, 1024},
		// No class is larger than a limit of the host's RAM needs, and all higher limits get
		// the same class.
		{math.MaxInt64, 2000, 2254},
		{2000 * mib, 2000, 2254},
		{1 << 30, 2000, 2048},
		{1 << 30, 600, 819},
		{16 << 30, 24105, 24911},
		{64 << 30, 24105, 24911},
	} {
		if got := memoryClassMiB(c.limit, c.hostMiB); got != c.want {
			t.Errorf("limit %d on a host of %d MiB: got %d MiB, want %d", c.limit, c.hostMiB, got, c.want)
		}
	}
}

func TestDefaultMemory(t *testing.T) {
	for host, want := range map[int]int{
		0: 1024, 200: 256, 1000: 768, 1024: 1024, 7900: 7680, 24105: 16384, 1 << 20: 16384,
	} {
		if got := DefaultMemoryMiB(host); got != want {
			t.Errorf("host of %d MiB: got %d MiB, want %d", host, got, want)
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	for _, c := range []struct {
		r    *specs.LinuxResources
		want int64
	}{
		{nil, 0},
		{&specs.LinuxResources{}, 0},
		{&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}, 0},
		{&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(7))}}, 7},
		{&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(7))}, Unified: map[string]string{"memory.max": "9"}}, 9},
		{&specs.LinuxResources{Unified: map[string]string{"memory.max": "max"}}, 0},
	} {
		if got, err := memoryLimit(c.r); err != nil || got != c.want {
			t.Errorf("%+v: got %d, %v, want %d", c.r, got, err, c.want)
		}
	}
}

func TestVCPUs(t *testing.T) {
	for _, c := range []struct {
		cpu  specs.LinuxCPU
		host int
		want int
	}{
		{specs.LinuxCPU{}, 4, 0},
		{specs.LinuxCPU{Shares: ptr(uint64(2))}, 4, 0},
		{specs.LinuxCPU{Quota: ptr(int64(-1))}, 4, 0},
		{specs.LinuxCPU{Quota: ptr(int64(1000))}, 4, 1},
		{specs.LinuxCPU{Quota: ptr(int64(100000))}, 4, 1},
		{specs.LinuxCPU{Quota: ptr(int64(100001))}, 4, 2},
		{specs.LinuxCPU{Quota: ptr(int64(150000)), Period: ptr(uint64(50000))}, 4, 3},
		{specs.LinuxCPU{Quota: ptr(int64(math.MaxInt64)), Period: ptr(uint64(1000))}, 0, 255},
		{specs.LinuxCPU{Quota: ptr(int64(800000))}, 4, 4},
		{specs.LinuxCPU{Cpus: "0-1,5"}, 8, 3},
		{specs.LinuxCPU{Cpus: "0-8191"}, 0, 255},
		{specs.LinuxCPU{Cpus: "0-1,5", Quota: ptr(int64(100000))}, 8, 1},
		{specs.LinuxCPU{Cpus: "7", Quota: ptr(int64(800000))}, 8, 1},
	} {
		got, err := cpus(&specs.LinuxResources{CPU: &c.cpu}, c.host)
		if err != nil || got != c.want {
			t.Errorf("%+v on %d CPUs: got %d, %v, want %d", c.cpu, c.host, got, err, c.want)
		}
	}
	if got, err := cpus(nil, 4); got != 0 || err != nil {
		t.Errorf("no resources: %d, %v", got, err)
	}
}

func TestCPUCount(t *testing.T) {
	for list, want := range map[string]int{
		"": 0, " 0\n": 1, "0-3": 4, "0-3,2,9": 5, "1, 3": 2, "8191": 1,
	} {
		if got, err := cpuCount(list); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", list, got, err, want)
		}
	}
	for _, list := range []string{",", "1,", "-", "1-", "-1", "2-1", "8192", "0-8192", "a", "0x1", "1-2-3", "1 2", "+1"} {
		if got, err := cpuCount(list); err == nil {
			t.Errorf("%q: accepted as %d CPUs", list, got)
		}
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestResources tests the resources of update.
func TestResources(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{}`, `{}`},
		{`{"memory":{"limit":100,"swap":200,"reservation":50,"checkBeforeUpdate":true}}`, `{"memory":{"limit":100,"reservation":50,"swap":200,"checkBeforeUpdate":true}}`},
		// Docker fills in all fields: 0 means "do not change".
		{`{"memory":{"limit":0,"swap":0,"kernel":0},"cpu":{"shares":0,"quota":0,"period":0,"cpus":"","mems":""},"blockIO":{"weight":0}}`, `{}`},
		{`{"cpu":{"shares":5,"quota":50000,"period":100000,"burst":1,"idle":0},"pids":{"limit":-1}}`, `{"cpu":{"shares":5,"quota":50000,"burst":1,"period":100000,"idle":0},"pids":{"limit":-1}}`},
		{`{"unified":{"memory.high":"5","cpu.weight":"3"}}`, `{"unified":{"cpu.weight":"3","memory.high":"5"}}`},
		// A burst of 0 removes the burst.
		{`{"cpu":{"burst":0}}`, `{"cpu":{"burst":0}}`},
		// These concern the host only.
		{`{"memory":{"swappiness":7},"cpu":{"mems":"0","realtimeRuntime":5},"blockIO":{"weight":10},"network":{"classID":1},"rdma":{"a":{"hcaHandles":1}},"unified":{"io.weight":"1"}}`, `{}`},
		// CRI and podman also send the container's device rules.
		{`{"devices":[{"allow":false,"access":"rwm"}],"hugepageLimits":[{"pageSize":"2MB","limit":0}],"pids":{"limit":7}}`, `{"pids":{"limit":7}}`},
	} {
		var r specs.LinuxResources
		if err := json.Unmarshal([]byte(c.in), &r); err != nil {
			t.Fatal(err)
		}
		_, got, err := Resources(&r, nil)
		if err != nil || asJSON(t, got) != c.want {
			t.Errorf("%s: got %s, %v, want %s", c.in, asJSON(t, got), err, c.want)
		}
	}
	if _, got, err := Resources(nil, nil); err != nil || asJSON(t, got) != "{}" {
		t.Errorf("no resources: %v, %v", got, err)
	}
	const refused = "update is not supported: linux.resources."
	for _, c := range []struct{ in, want string }{
		{`{"memory":{"limit":-7}}`, "linux.resources.memory.limit: -7 is neither a number of bytes nor -1 (unlimited)"},
		{`{"memory":{"kernel":7}}`, refused + "memory.kernel: Linux limits it no more"},
		{`{"memory":{"swap":7}}`, "linux.resources.memory.swap: unable to set swap limit without memory limit"},
		{`{"unified":{"memory.max":"1k"}}`, `linux.resources.unified: memory.max: "1k" is neither a number of bytes nor "max"`},
	} {
		var r specs.LinuxResources
		if err := json.Unmarshal([]byte(c.in), &r); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Resources(&r, nil); err == nil || err.Error() != c.want {
			t.Errorf("%s:\n got %v\nwant %s", c.in, err, c.want)
		}
	}
}

// TestSwapAlone: update may set the limit of memory and swap alone; it refers to the present
// memory limit.
func TestSwapAlone(t *testing.T) {
	asked := &specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(300))}}
	now := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(200))}}
	host, guest, err := Resources(asked, now)
	const want = `{"memory":{"limit":200,"swap":300}}`
	if err != nil || asJSON(t, guest) != want || asJSON(t, host) != want {
		t.Errorf("got %s and %s, %v, want %s", asJSON(t, host), asJSON(t, guest), err, want)
	}
	if asked.Memory.Limit != nil {
		t.Error("what was asked for is changed")
	}
	now.Memory.Limit = ptr(int64(400))
	if _, _, err := Resources(asked, now); err == nil {
		t.Error("memory and swap below the limit of memory: accepted")
	}
}

// TestConvertProcess tests what TestRejectProcess does not.
func TestConvertProcess(t *testing.T) {
	got, dropped, err := ConvertProcess(&specs.Process{
		Args: []string{"id"}, Cwd: "/tmp/", User: specs.User{UID: 5}, Terminal: true,
		ConsoleSize: &specs.Box{Height: 4, Width: 5}, ApparmorProfile: "p",
	})
	const want = `{"terminal":true,"consoleSize":{"height":4,"width":5},"user":{"uid":5,"gid":0},"args":["id"],"cwd":"/tmp"}`
	if err != nil || asJSON(t, got) != want {
		t.Errorf("got %s, %v, want %s", asJSON(t, got), err, want)
	}
	if len(dropped) != 1 || dropped[0] != "process.apparmorProfile: dropped: the guest has no AppArmor policy" {
		t.Errorf("warnings: %q", dropped)
	}
	if _, _, err := ConvertProcess(nil); err == nil {
		t.Error("no process: accepted")
	}
	if _, _, err := ConvertProcess(&specs.Process{Cwd: "/"}); err == nil || err.Error() != "process.args: args must not be empty" {
		t.Errorf("no args: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	for _, c := range []struct {
		options []string
		want    bool
	}{
		{nil, false},
		{[]string{"ro"}, true},
		{[]string{"ro", "rw"}, false},
		{[]string{"rw", "ro"}, true},
		{[]string{"rro"}, true},
		{[]string{"rro", "rrw"}, false},
		{[]string{"rro", "rw"}, true},
	} {
		if got := readOnly(c.options); got != c.want {
			t.Errorf("%v: got %v", c.options, got)
		}
	}
}

// TestShm tests a bind at /dev/shm, which engines make for a shared ipc namespace.
func TestShm(t *testing.T) {
	for _, c := range []struct {
		source  string
		options []string
		want    string // the guest's mount
		ipc     string // namespace that is joined
	}{
		{"/run/unlimited", []string{"bind"}, `{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","noexec","nodev","mode=1777"]}`, ""},
		{"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/b00b/shm", []string{"rbind", "ro"}, `{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","noexec","nodev","ro","mode=1777","size=65536k"]}`, "/proc/1/ns/ipc"},
		{"/srv/dir", []string{"bind"}, `{"destination":"/dev/shm","type":"bind","source":"/run/husk/share/mounts/7/dir","options":["bind"]}`, ""},
	} {
		spec := Example()
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: c.source, Options: c.options})
		for i, ns := range spec.Linux.Namespaces {
			if ns.Type == specs.IPCNamespace {
				spec.Linux.Namespaces[i].Path = c.ipc
			}
		}
		plan, err := Convert(testEnv(), spec)
		if err != nil {
			t.Fatal(err)
		}
		checkPlan(t, plan)
		if got := asJSON(t, plan.Guest.Mounts[7]); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.source, got, c.want)
		}
		// Joining the namespace causes another warning.
		if warned := strings.Contains(strings.Join(plan.Warnings, "\n"), "/dev/shm is a tmpfs"); warned != (c.ipc != "") {
			t.Errorf("%s: warnings %q", c.source, plan.Warnings)
		}
	}
}

func TestFit(t *testing.T) {
	for _, c := range []struct {
		vm             VM
		standard, want int
		cpus           string
	}{
		{VM{}, 4, 4, ""},
		{VM{CPUs: 1}, 4, 4, "0-0"},
		{VM{CPUs: 3}, 4, 4, "0-2"},
		{VM{CPUs: 4}, 4, 4, ""},
		{VM{CPUs: 5}, 4, 8, "0-4"},
		{VM{CPUs: 8}, 4, 8, ""},
		{VM{CPUs: 200}, 4, 255, "0-199"},
		{VM{CPUs: 1, VCPUs: 3}, 4, 3, ""},
	} {
		p := &Plan{Guest: &specs.Spec{Linux: &specs.Linux{}}}
		got, restricted := c.vm.Fit(c.standard)
		cpus := ""
		if r := p.GuestSpec(Found{CPUs: restricted}).Linux.Resources; r != nil {
			cpus = r.CPU.Cpus
		}
		if got != c.want || cpus != c.cpus {
			t.Errorf("%+v of %d: %d vCPUs, cpuset %q; want %d, %q", c.vm, c.standard, got, cpus, c.want, c.cpus)
		}
	}
}
