package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// planDevices has the rules written on the host as well, where that is cgroup v1:
// each as it is and in order, as the spec wants, and not merged as the library
// does. They are no more than a second wall: what the machine needs of the host's
// devices it has open, and whether its container may use the guest's is decided
// there.
func (c *Change) planDevices(rules []specs.LinuxDeviceCgroup) {
	const name = "devices"
	dir, found := c.group.Paths[name]
	if _, skipped := c.group.Skipped[name]; !found || skipped || slices.Contains(c.group.Keep, dir) {
		return // the guest holds them; with groups below it the kernel takes no such rules
	}
	c.parts = append(c.parts, part{dir: dir, set: func() error {
		for _, r := range slices.Concat(rules, hostDevices) {
			file := "devices.deny"
			if r.Allow {
				file = "devices.allow"
			}
			err := cgroups.WriteFile(dir, file, deviceRule(r))
			// A group may allow no more than the one it is in: then less it is.
			if err != nil && (!r.Allow || !errors.Is(err, fs.ErrPermission)) {
				return err
			}
		}
		return nil
	}})
}

// hostDevices are what processes of husk's may do later, whatever the rules say:
// the vmm makes nodes in the rootfs for the guest, and an exec process uses what
// each process does. They are those that runc gives to every container.
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

// deviceRule is a rule in the kernel's words (admin-guide/cgroup-v1/devices.rst).
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
