package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/protocol"
)

func TestPlugDisks(t *testing.T) {
	sys := t.TempDir()
	for name, text := range map[string]string{
		"vda/serial": "husk-0", "vda/dev": "254:0\n", "vdb/serial": "husk-1\n", "vdb/dev": "254:16\n", "loop0/dev": "7:0\n",
	} {
		path := filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	node := func(kind string, major, minor int64) specs.LinuxDevice {
		return specs.LinuxDevice{Path: "/dev/x", Type: kind, Major: major, Minor: minor}
	}
	// The first disk's number on the host equals the second disk's number in the guest. The
	// node must get the first disk's number in the guest.
	disks := []*protocol.Disk{{Serial: "husk-0", Major: 254, Minor: 16}, {Serial: "husk-1", Major: 254, Minor: 0}}
	spec := &specs.Spec{Linux: &specs.Linux{Devices: []specs.LinuxDevice{
		node("b", 254, 16), node("b", 254, 0), node("c", 254, 0), node("b", 254, 16), node("b", 8, 1),
	}}}
	if err := plugDisks(spec, disks, "/nosuch", sys); err != nil {
		t.Fatal(err)
	}
	want := []specs.LinuxDevice{node("b", 254, 0), node("b", 254, 16), node("c", 254, 0), node("b", 254, 0), node("b", 8, 1)}
	if !slices.EqualFunc(spec.Linux.Devices, want, func(a, b specs.LinuxDevice) bool {
		return a.Type == b.Type && a.Major == b.Major && a.Minor == b.Minor
	}) {
		t.Errorf("nodes %+v, want %+v", spec.Linux.Devices, want)
	}

	rule := func(kind string, major, minor int64) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: "r"}
	}
	wild := specs.LinuxDeviceCgroup{Type: "b", Access: "m"}
	spec = &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
		{Access: "rwm"}, rule("b", 254, 0), rule("c", 254, 0), rule("b", 8, 0), wild, rule("b", -1, -1), rule("b", 254, -1),
	}}}}
	if err := plugDisks(spec, disks, "/nosuch", sys); err != nil {
		t.Fatal(err)
	}
	rules := []specs.LinuxDeviceCgroup{
		{Access: "rwm"}, rule("b", 254, 16), rule("c", 254, 0), wild, rule("b", -1, -1), rule("b", 254, 0), rule("b", 254, 16),
	}
	if got := spec.Linux.Resources.Devices; !reflect.DeepEqual(got, rules) {
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(rules)
		t.Errorf("rules %s, want %s", a, b)
	}

	err := plugDisks(spec, []*protocol.Disk{{Serial: "husk-2", Major: 8, Minor: 1}}, "/nosuch", sys)
	const told = `disk "husk-2" for the host's block device 8:1 is not there: the guest's kernel needs virtio_blk, built in or as a module`
	if err == nil || err.Error() != told {
		t.Errorf("error %v, want %s", err, told)
	}
	if err := plugDisks(&specs.Spec{}, nil, "/nosuch", "/nosuch"); err != nil {
		t.Error(err)
	}
}
