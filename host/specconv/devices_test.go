package specconv

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestDisks: which block devices of the host the guest gets, and how.
func TestDisks(t *testing.T) {
	device := func(major, minor int64) specs.LinuxDevice {
		return specs.LinuxDevice{Path: "/dev/x", Type: "b", Major: major, Minor: minor}
	}
	rule := func(allow bool, kind string, major, minor *int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access}
	}
	none := rule(false, "", nil, nil, "rwm") // engines begin their rules with this one
	major, one, any := ptr(int64(252)), ptr(int64(1)), ptr(int64(-1))
	for name, tc := range map[string]struct {
		rules   []specs.LinuxDeviceCgroup
		devices []specs.LinuxDevice
		want    []Disk
	}{
		"no rules":          {nil, []specs.LinuxDevice{device(252, 1)}, nil},
		"all denied":        {[]specs.LinuxDeviceCgroup{none}, []specs.LinuxDevice{device(252, 1)}, nil},
		"of no driver":      {[]specs.LinuxDeviceCgroup{rule(true, "b", nil, nil, "rwm")}, []specs.LinuxDevice{device(8, 666)}, nil},
		"its own rule":      {[]specs.LinuxDeviceCgroup{none, rule(true, "b", major, one, "rwm")}, []specs.LinuxDevice{device(252, 1)}, []Disk{{Major: 252, Minor: 1}}},
		"to read":           {[]specs.LinuxDeviceCgroup{none, rule(true, "b", major, one, "r")}, []specs.LinuxDevice{device(252, 1)}, []Disk{{Major: 252, Minor: 1, ReadOnly: true}}},
		"to write alone":    {[]specs.LinuxDeviceCgroup{none, rule(true, "b", major, one, "w")}, []specs.LinuxDevice{device(252, 1)}, nil},
		"all of a driver":   {[]specs.LinuxDeviceCgroup{none, rule(true, "b", major, any, "rw")}, []specs.LinuxDevice{device(252, 1)}, []Disk{{Major: 252, Minor: 1}}},
		"a character one's": {[]specs.LinuxDeviceCgroup{none, rule(true, "c", major, one, "rw")}, []specs.LinuxDevice{device(252, 1)}, nil},
		"another's":         {[]specs.LinuxDeviceCgroup{none, rule(true, "b", major, one, "rw")}, []specs.LinuxDevice{device(252, 2)}, nil},
		"the last holds":    {[]specs.LinuxDeviceCgroup{rule(true, "a", nil, nil, "rwm"), rule(false, "b", major, one, "w")}, []specs.LinuxDevice{device(252, 1)}, []Disk{{Major: 252, Minor: 1, ReadOnly: true}}},
		"denied, no access": {[]specs.LinuxDeviceCgroup{rule(true, "a", nil, nil, "rwm"), rule(false, "", nil, nil, "")}, []specs.LinuxDevice{device(252, 1)}, nil},
		"two names, one disk": {
			[]specs.LinuxDeviceCgroup{rule(true, "b", nil, nil, "rwm")},
			[]specs.LinuxDevice{device(252, 1), device(252, 0), device(252, 1)},
			[]Disk{{Major: 252, Minor: 1}, {Major: 252}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := readSpec(t, "minimal.json")
			spec.Linux.Resources = &specs.LinuxResources{Devices: tc.rules}
			spec.Linux.Devices = tc.devices
			plan, err := Convert(testEnv(), spec)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Clone(plan.Disks)
			for i := range got {
				got[i].Field = ""
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("disks %+v, want %+v", got, tc.want)
			}
			if len(plan.Guest.Linux.Devices) != len(tc.devices) {
				t.Errorf("nodes of the guest: %+v", plan.Guest.Linux.Devices)
			}
		})
	}
}

// TestPrivileged: a container that may use every device gets the devices of its machine and no
// disk of the host.
func TestPrivileged(t *testing.T) {
	spec := readSpec(t, "minimal.json")
	spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	spec.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/vdb", Type: "b", Major: 252, Minor: 1},
		{Path: "/dev/autofs", Type: "c", Major: 10, Minor: 235},
		{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200},
		{Path: "/dev/loop-control", Type: "c", Major: 10, Minor: 237},
		{Path: "/dev/loop0", Type: "b", Major: 7},
	}
	env := testEnv()
	plan, err := Convert(env, spec)
	if err != nil {
		t.Fatal(err)
	}
	var nodes []string
	for _, d := range plan.Guest.Linux.Devices {
		nodes = append(nodes, d.Path)
	}
	want := []string{"/dev/autofs", "/dev/net/tun", "/dev/loop-control", "/dev/loop0"}
	if len(plan.Disks) != 0 || !slices.Equal(nodes, want) {
		t.Errorf("disks %v, nodes %v; want none and %v", plan.Disks, nodes, want)
	}
	if !slices.ContainsFunc(plan.Warnings, func(w string) bool { return strings.Contains(w, "devices of the host are left out") }) {
		t.Errorf("nothing was said: %q", plan.Warnings)
	}
}
