package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	// This import registers the library's functions for devices.
	_ "github.com/opencontainers/cgroups/devices"
	devices "github.com/opencontainers/cgroups/devices/config"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// addDevices denies the group's processes the devices of the host. The machine has opened the
// devices it needs by then. This is a second barrier: a guest that takes the vmm over finds
// only hostDevices, whatever nodes it can make or reach.
//
// The guest decides whether the container may use a device of the guest. Still cgroup v1 gets
// the rules of the spec as well, one by one and in their order, where the library would merge
// them: the OCI validation suite reads them in a file. Nobody can read the program of cgroup
// v2, so that allows hostDevices only.
func (c *Change) addDevices(rules []specs.LinuxDeviceCgroup) {
	const name = "devices"
	dir, found := c.group.Paths[name]
	if !found {
		c.addFilter()
		return
	}
	if _, skipped := c.group.Skipped[name]; skipped || slices.Contains(c.group.Keep, dir) {
		return // the kernel accepts no such rules for a group with groups below it
	}
	c.parts = append(c.parts, part{dir: dir, set: func() error {
		for _, r := range slices.Concat(denyAll, precise(rules), hostDevices) {
			file := "devices.deny"
			if r.Allow {
				file = "devices.allow"
			}
			err := cgroups.WriteFile(dir, file, deviceRule(r))
			// A group cannot allow more than its parent does. Then it allows less.
			if err != nil && (!r.Allow || !errors.Is(err, fs.ErrPermission)) {
				return err
			}
		}
		return nil
	}})
}

// addFilter is for a machine with cgroup v1 on which the devices controller is in v2 or
// missing.
func (c *Change) addFilter() {
	dir, found := c.group.Paths[""]
	if !found {
		return
	}
	c.parts = append(c.parts, part{dir: dir, set: func() error {
		return cgroups.DevicesSetV2(dir, &cgroups.Resources{Devices: filterRules()})
	}})
}

// filterRules returns hostDevices for the library. The program that it makes denies all others.
func filterRules() (rules []*devices.Rule) {
	for _, r := range hostDevices {
		rules = append(rules, &devices.Rule{
			Type: devices.Type(r.Type[0]), Major: wildcard(r.Major), Minor: wildcard(r.Minor),
			Permissions: devices.Permissions(r.Access), Allow: r.Allow,
		})
	}
	return rules
}

func wildcard(n *int64) int64 {
	if n == nil {
		return devices.Wildcard
	}
	return *n
}

// Initial returns r as the limits of a new group: if it has no rule about devices, all are
// denied, as with runc. If it has no limit of processes, the host's group gets defaultPids,
// of which the guest does not hear.
func Initial(r *specs.LinuxResources) *specs.LinuxResources {
	out := specs.LinuxResources{}
	if r != nil {
		out = *r
	}
	if len(out.Devices) == 0 {
		out.Devices = denyAll
	}
	if out.Pids == nil || value(out.Pids.Limit) == 0 {
		limit := int64(defaultPids)
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return &out
}

var denyAll = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}

// precise splits rules for both types of devices in two, unless they are about all access to
// every device: the kernel takes "a" for exactly that.
func precise(rules []specs.LinuxDeviceCgroup) (out []specs.LinuxDeviceCgroup) {
	for _, r := range rules {
		whole := deviceNumber(r.Major) == "*" && deviceNumber(r.Minor) == "*" &&
			(r.Access == "" || strings.Contains(r.Access, "r") && strings.Contains(r.Access, "w") && strings.Contains(r.Access, "m"))
		if r.Type != "" && r.Type != "a" || whole {
			out = append(out, r)
			continue
		}
		for _, kind := range []string{"b", "c"} {
			r.Type = kind
			out = append(out, r)
		}
	}
	return out
}

// hostDevices are devices that husk's processes may use, whatever the rules of the spec say:
// the vmm makes nodes in the rootfs for the guest, and an exec process uses what every process
// uses. runc allows every container the same.
var hostDevices = []specs.LinuxDeviceCgroup{
	{Allow: true, Type: "c", Access: "m"},
	{Allow: true, Type: "b", Access: "m"},
	characterDevice(1, 3),    // null
	characterDevice(1, 5),    // zero
	characterDevice(1, 7),    // full
	characterDevice(1, 8),    // random
	characterDevice(1, 9),    // urandom
	characterDevice(5, 0),    // tty
	characterDevice(5, 2),    // ptmx
	characterDevice(136, -1), // pts
}

func characterDevice(major, minor int64) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"}
}

// deviceRule returns a rule in the kernel's format (admin-guide/cgroup-v1/devices.rst).
func deviceRule(r specs.LinuxDeviceCgroup) string {
	kind := r.Type
	if kind == "" {
		kind = "a"
	}
	if kind == "a" && r.Major == nil && r.Minor == nil {
		return "a"
	}
	access := r.Access
	if access == "" {
		access = "rwm"
	}
	return fmt.Sprintf("%s %s:%s %s", kind, deviceNumber(r.Major), deviceNumber(r.Minor), access)
}

func deviceNumber(n *int64) string {
	if n == nil || *n < 0 {
		return "*"
	}
	return strconv.FormatInt(*n, 10)
}
