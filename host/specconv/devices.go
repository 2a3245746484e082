package specconv

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// deviceNumber is the number of a character device.
type deviceNumber struct{ major, minor int64 }

// guestDevices are the character devices that every guest has, each with its path in the
// guest's devtmpfs. Each means the same in the guest as on the host. Most are built into every
// kernel. The agent loads the drivers of the others, and refuses a container if the guest's
// kernel has none.
var guestDevices = map[deviceNumber]string{
	{1, 3}:  "/dev/null",
	{1, 5}:  "/dev/zero",
	{1, 7}:  "/dev/full",
	{1, 8}:  "/dev/random",
	{1, 9}:  "/dev/urandom",
	{1, 11}: "/dev/kmsg", // the log of the guest's kernel, which is the container's
	{5, 0}:  "/dev/tty",
	{5, 2}:  "/dev/ptmx",

	{10, 200}: "/dev/net/tun",
	{10, 229}: "/dev/fuse",
	{10, 237}: "/dev/loop-control", // the kernel asks for its driver when it is opened
}

// loopMajor is the major number of loop devices. A loop device shows a file of its own kernel.
const loopMajor = 7

const (
	// Device numbers of Linux have 12 bits of major and 20 bits of minor.
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
	// maxFileMode includes the bits of the file's type, because engines send them.
	maxFileMode = 0o177777
)

func validateDevices(spec *specs.Spec) error {
	for i, d := range spec.Linux.Devices {
		field := index("linux.devices", i)
		switch {
		case !filepath.IsAbs(d.Path) || filepath.Clean(d.Path) == "/":
			return fieldErrorf(field+".path", "%s is not an absolute path of a file", quote(d.Path))
		case d.Type != "b" && d.Type != "c" && d.Type != "u" && d.Type != "p":
			return fieldErrorf(field+".type", "invalid device type %s", quote(d.Type))
		case d.UID != nil && *d.UID == noID:
			return fieldErrorf(field+".uid", "%d is not a user id", *d.UID)
		case d.GID != nil && *d.GID == noID:
			return fieldErrorf(field+".gid", "%d is not a group id", *d.GID)
		case d.FileMode != nil && *d.FileMode > maxFileMode:
			return fieldErrorf(field+".fileMode", "%#o is not between 0 and %#o", uint32(*d.FileMode), maxFileMode)
		case d.Type == "p":
			// A fifo has no device number, but some engines send one.
		case d.Major < 0 || d.Major > maxMajor:
			return fieldErrorf(field+".major", "%d is not between 0 and %d", d.Major, maxMajor)
		case d.Minor < 0 || d.Minor > maxMinor:
			return fieldErrorf(field+".minor", "%d is not between 0 and %d", d.Minor, maxMinor)
		}
	}
	return nil
}

// maxDisks bounds the block devices of one container. The virtual machine has room for about
// two dozen devices of all kinds.
const maxDisks = 12

// devices returns the device nodes that the guest makes. A block device of the host becomes a
// disk of the guest. A character device is refused if the host has it and the guest cannot: its
// node in the guest would open something else, or nothing. If the host does not have it either
// (the spec allows any number), the node is made as asked, because it is a node without a
// driver on both sides.
func (c *converter) devices(l *specs.Linux) ([]specs.LinuxDevice, error) {
	var guest []specs.LinuxDevice
	privileged, left := allowsAll(l.Resources), 0
	for i, d := range l.Devices {
		field := index("linux.devices", i)
		if privileged && c.isHosts(d) {
			left++
			continue
		}
		node := specs.LinuxDevice{Path: filepath.Clean(d.Path), Type: d.Type, FileMode: d.FileMode, UID: d.UID, GID: d.GID}
		if d.Type != "p" {
			node.Major, node.Minor = d.Major, d.Minor
		}
		switch d.Type {
		case "b":
			if privileged {
				break // a loop device of the guest, or a device that nobody has
			}
			if err := c.disk(field, d, l.Resources); err != nil {
				return nil, err
			}
		case "c", "u": // "u" means unbuffered, which Linux does not distinguish
			_, known := guestDevices[deviceNumber{d.Major, d.Minor}]
			if !known && c.host.HasDevice("c", d.Major, d.Minor) {
				return nil, fieldErrorf(field, "%s is a device of the host (c %d:%d): not supported yet", quote(d.Path), d.Major, d.Minor)
			}
		}
		guest = append(guest, node)
	}
	c.warn.dropIf(left > 0, "linux.devices", fmt.Sprintf("%d devices of the host are left out: a container that may use all devices gets all of its virtual machine's", left))
	return guest, nil
}

// isHosts says whether the host has a device that the guest does not have by itself. The guest
// has loop devices by itself.
func (c *converter) isHosts(d specs.LinuxDevice) bool {
	if d.Type == "b" {
		return d.Major != loopMajor && c.host.HasDevice("b", d.Major, d.Minor)
	}
	_, known := guestDevices[deviceNumber{d.Major, d.Minor}]
	return d.Type != "p" && !known && c.host.HasDevice("c", d.Major, d.Minor)
}

// allowsAll says whether the container may use every device. Then engines list all devices of
// the host (docker run --privileged), among them many that nobody needs, and the disk with the
// host's own files.
func allowsAll(r *specs.LinuxResources) bool {
	if r == nil || len(r.Devices) == 0 {
		return false
	}
	last := r.Devices[len(r.Devices)-1]
	every := func(n *int64) bool { return n == nil || *n < 0 }
	return last.Allow && (last.Type == "" || last.Type == "a") && every(last.Major) && every(last.Minor)
}

// disk adds a block device of the host to the plan. It skips a device that is no block device,
// that the container may not use, or that it has already under another name.
func (c *converter) disk(field string, d specs.LinuxDevice, r *specs.LinuxResources) error {
	read, write := blockAccess(r, d.Major, d.Minor)
	has := slices.ContainsFunc(c.plan.Disks, func(has Disk) bool {
		return int64(has.Major) == d.Major && int64(has.Minor) == d.Minor
	})
	if has || !read || !c.host.HasDevice("b", d.Major, d.Minor) {
		return nil
	}
	if len(c.plan.Disks) == maxDisks {
		return fieldErrorf(field, "%s is one block device more than the %d that a virtual machine has room for", quote(d.Path), maxDisks)
	}
	c.plan.Disks = append(c.plan.Disks, Disk{Major: uint32(d.Major), Minor: uint32(d.Minor), ReadOnly: !write, Field: field})
	return nil
}

// blockAccess returns what the device rules allow for a block device. Later rules have
// precedence, and without a rule access is denied, as with runc.
func blockAccess(r *specs.LinuxResources, major, minor int64) (read, write bool) {
	if r == nil {
		return read, write
	}
	matches := func(want *int64, got int64) bool { return want == nil || *want < 0 || *want == got }
	for _, rule := range r.Devices {
		all := rule.Type == "" || rule.Type == "a"
		if !all && (rule.Type != "b" || !matches(rule.Major, major) || !matches(rule.Minor, minor)) {
			continue
		}
		access := rule.Access
		if access == "" && !rule.Allow {
			access = "rwm"
		}
		if strings.Contains(access, "r") {
			read = rule.Allow
		}
		if strings.Contains(access, "w") {
			write = rule.Allow
		}
	}
	return read, write
}

// guestDeviceRules leaves out rules that allow character devices which the guest does not have,
// such as the console, which engines always allow. Without these rules most containers have the
// same filter, which a prepared container already has.
func guestDeviceRules(rules []specs.LinuxDeviceCgroup) []specs.LinuxDeviceCgroup {
	var guest []specs.LinuxDeviceCgroup
	for _, r := range rules {
		if r.Allow && r.Type == "c" && r.Major != nil && r.Minor != nil && *r.Major >= 0 && *r.Minor >= 0 {
			const pts = 136
			_, known := guestDevices[deviceNumber{*r.Major, *r.Minor}]
			if !known && *r.Major != pts {
				continue
			}
		}
		guest = append(guest, r)
	}
	return guest
}
