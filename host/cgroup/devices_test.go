package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// opensEnv makes the test binary print which device nodes it can open.
const opensEnv = "HUSK_CGROUP_TEST_OPENS"

// opens is run by the child. It waits for a line, so that it is in its cgroup by then, and
// tries each node.
func opens(nodes string) {
	_, _ = os.Stdin.Read(make([]byte, 1))
	for node := range strings.SplitSeq(nodes, " ") {
		f, err := os.OpenFile(node, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		switch {
		case err == nil:
			_ = f.Close()
			fmt.Println(filepath.Base(node), "allowed")
		case errors.Is(err, unix.EPERM):
			fmt.Println(filepath.Base(node), "denied")
		case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EIO):
			fmt.Println(filepath.Base(node), "allowed") // the open was allowed, and there is no device
		default:
			fmt.Println(filepath.Base(node), err)
		}
	}
}

// nodes makes device nodes with these numbers and returns their paths.
func nodes(t *testing.T, devices map[string]uint32) []string {
	t.Helper()
	dir := t.TempDir()
	var paths []string
	for name, mode := range devices {
		path := filepath.Join(dir, name)
		var kind byte
		var major, minor uint32
		if _, err := fmt.Sscanf(name, "%c%d-%d", &kind, &major, &minor); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(path, mode|0o600, int(unix.Mkdev(major, minor))); err != nil {
			t.Skipf("make a device node: %v", err)
		}
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}

// inGroup returns what a process in the group can open, in the form that opens prints.
func inGroup(t *testing.T, g *Group, paths []string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), opensEnv+"="+strings.Join(paths, " "))
	var out strings.Builder
	cmd.Stdout = &out
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = g.Add(cmd.Process.Pid)
	_, _ = in.Write([]byte("\n"))
	if err := errors.Join(err, cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// someDevices are devices that husk's processes need, that the spec grants, and that neither
// does.
var someDevices = map[string]uint32{
	"c1-3": unix.S_IFCHR, "c1-9": unix.S_IFCHR, "c5-2": unix.S_IFCHR,
	"c10-229": unix.S_IFCHR,
	"c1-11":   unix.S_IFCHR, "c1-1": unix.S_IFCHR, "c10-232": unix.S_IFCHR, "b7-0": unix.S_IFBLK, "b8-0": unix.S_IFBLK,
}

const (
	filtered = "b7-0 denied\nb8-0 denied\nc1-1 denied\nc1-11 denied\nc1-3 allowed\nc1-9 allowed\nc10-229 denied\nc10-232 denied\nc5-2 allowed\n"
	// With v1 the list also has what the spec allows.
	listed = "b7-0 denied\nb8-0 denied\nc1-1 denied\nc1-11 denied\nc1-3 allowed\nc1-9 allowed\nc10-229 %s\nc10-232 denied\nc5-2 allowed\n"
)

// TestDevicesV2: a process in a container's group can use only devices that every process may
// use, whatever the spec says and updates change.
func TestDevicesV2(t *testing.T) {
	if !inLayout(t, "v2") {
		return
	}
	for name, r := range map[string]*specs.LinuxResources{
		"no limits":   nil,
		"all denied":  {Devices: denyAll},
		"all allowed": {Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
	} {
		t.Run(name, func(t *testing.T) {
			paths := nodes(t, someDevices)
			g := newGroup(t, uniquePath(t))
			if !g.IsV2() {
				t.Fatalf("paths %v", g.Paths)
			}
			join(t, g, startSleepIn(t, g))
			if got := inGroup(t, g, paths); strings.Contains(got, "denied") {
				t.Fatalf("devices are denied before the machine has opened its own:\n%s", got)
			}
			for range 2 { // the second replaces the first
				if err := g.Change(Initial(r), true).Apply(); err != nil {
					t.Fatal(err)
				}
				if got := inGroup(t, g, paths); got != filtered {
					t.Errorf("got\n%swant\n%s", got, filtered)
				}
			}
			apply(t, g, `{"unified":{}}`, false)
			apply(t, g, `{}`, true)
			if err := g.MakeRoom(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := inGroup(t, g, paths); got != filtered {
				t.Errorf("after an update: got\n%swant\n%s", got, filtered)
			}
		})
	}
}

// TestDevicesV1 is the same test for cgroup v1.
func TestDevicesV1(t *testing.T) {
	fuse := int64(10)
	for name, tc := range map[string]struct {
		r    *specs.LinuxResources
		fuse string
	}{
		"no limits":  {nil, "denied"},
		"all denied": {&specs.LinuxResources{Devices: denyAll}, "denied"},
		// For both types and not all access: written as one rule, the kernel would take it for
		// all access.
		"all may be made": {&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "m"}}}, "denied"},
		"one allowed":     {&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &fuse, Minor: number(229), Access: "rw"}}}, "allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGroup(t, uniquePath(t))
			dir, found := g.Paths["devices"]
			if !found {
				t.Skip("no v1 devices on this machine")
			}
			paths := nodes(t, someDevices)
			join(t, g, startSleepIn(t, g))
			if err := g.Change(Initial(tc.r), true).Apply(); err != nil {
				t.Fatal(err)
			}
			got := inGroup(t, g, paths)
			want := fmt.Sprintf(listed, tc.fuse)
			if got != want {
				list, _ := cgroups.ReadFile(dir, "devices.list")
				t.Errorf("got\n%swant\n%s%s", got, want, list)
			}
			apply(t, g, `{}`, false)
			if again := inGroup(t, g, paths); again != want {
				t.Errorf("after an update: got\n%swant\n%s", again, want)
			}
		})
	}
}

// TestDevicesOfHybrid: if v1 has no devices controller, v2 is used.
func TestDevicesOfHybrid(t *testing.T) {
	g := newGroup(t, uniquePath(t))
	if _, found := g.Paths[""]; !found || len(g.Paths) == 1 {
		t.Skip("this machine has not both hierarchies")
	}
	paths := nodes(t, someDevices)
	join(t, g, startSleepIn(t, g))
	all := g.Paths
	g.Paths = map[string]string{"": all[""], "pids": all["pids"]}
	if err := g.Change(Initial(nil), true).Apply(); err != nil {
		t.Fatal(err)
	}
	if got := inGroup(t, g, paths); got != filtered {
		t.Errorf("got\n%swant\n%s", got, filtered)
	}
	g.Paths = all
}

// TestInitial: Initial adds what is missing, and does not change its argument.
func TestInitial(t *testing.T) {
	given := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: number(-1)}}
	if r := Initial(given); r.Pids != given.Pids || len(r.Devices) != 1 || given.Devices != nil {
		t.Errorf("%+v of %+v", r, given)
	}
	for _, none := range []*specs.LinuxResources{nil, {}, {Pids: &specs.LinuxPids{}}, {Pids: &specs.LinuxPids{Limit: number(0)}}} {
		for _, room := range []Room{{}, {created: true}} {
			if r := convert(Initial(none), Initial(none), room); value(r.PidsLimit) != 4096 {
				t.Errorf("without a limit the host's is %d", value(r.PidsLimit))
			}
		}
	}
	one := []specs.LinuxDeviceCgroup{{Allow: true, Access: "r"}}
	if r := Initial(&specs.LinuxResources{Devices: one}); !slices.Equal(r.Devices, one) {
		t.Errorf("%+v", r.Devices)
	}
}

func number(n int64) *int64 { return &n }

// TestDevicesOfUnit: systemd gets the same rules. Otherwise it would replace the program by one
// of its own when other limits change.
func TestDevicesOfUnit(t *testing.T) {
	if systemd.GenerateDeviceProps == nil {
		t.Fatal("the library does not know how to tell systemd of devices")
	}
	const version = 252
	properties, err := systemd.GenerateDeviceProps(&cgroups.Resources{Devices: filterRules()}, version)
	if err != nil {
		t.Fatal(err)
	}
	said := ""
	for _, p := range properties {
		said += fmt.Sprintf("%s %v\n", p.Name, p.Value.Value())
	}
	for _, want := range []string{"DevicePolicy", "strict", "/dev/char/1:3", "/dev/char/5:2", "char-136"} {
		if !strings.Contains(said, want) {
			t.Errorf("systemd is not told of %s: %s", want, said)
		}
	}
	for _, path := range []string{"/dev/char/1:11", "/dev/char/10:232", "/dev/kvm"} {
		if strings.Contains(said, path) {
			t.Errorf("systemd is told to allow %s", path)
		}
	}
	if properties, err = systemd.GenerateDeviceProps(&cgroups.Resources{SkipDevices: true}, version); err != nil || len(properties) > 0 {
		t.Errorf("limits without devices tell systemd %v, %v", properties, err)
	}
}
