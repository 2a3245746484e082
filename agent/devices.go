package main

import (
	"fmt"
	"os"
	"path"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// demandFile lists the modules that are loaded on demand. A line has the name of a driver
	// and the path of a module: one that the driver needs, or the driver's own. They are in
	// dependency order. host/bootimage writes the file.
	demandFile = "/lib/modules/demand"
	// sysDevices has an entry for each character device that has a driver.
	sysDevices = "/sys/dev/char"
)

// driver describes a character device for which the kernel has a module.
type driver struct {
	module string
	number string // "major:minor"
	path   string // of its node in devtmpfs, the source of binds
}

var drivers = []driver{
	{"fuse", "10:229", "/dev/fuse"},
	{"tun", "10:200", "/dev/net/tun"},
}

// netAdminModules are loaded for containers with CAP_NET_ADMIN. Old versions of iptables do not
// make the kernel load these modules but run the image's modprobe, which finds no modules in
// the guest. On container hosts these modules are always loaded.
var netAdminModules = []string{"ip_tables", "ip6_tables"}

// wantedBy says whether a container has the device, as a node of its own or as a bind.
func (d driver) wantedBy(spec *specs.Spec) bool {
	if slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Type == "bind" && m.Source == d.path }) {
		return true
	}
	return spec.Linux != nil && slices.ContainsFunc(spec.Linux.Devices, func(n specs.LinuxDevice) bool {
		return (n.Type == "c" || n.Type == "u") && d.number == fmt.Sprintf("%d:%d", n.Major, n.Minor)
	})
}

// loadDrivers loads the modules that a container's devices and capabilities need. list is
// demandFile and sysDir is sysDevices, except in tests.
func loadDrivers(spec *specs.Spec, list, sysDir string) error {
	for _, d := range drivers {
		if !d.wantedBy(spec) || hasDevice(sysDir, d.number) {
			continue
		}
		if err := loadOnDemand(list, d.module); err != nil {
			return fmt.Errorf("load driver of %s: %w", d.path, err)
		}
		if !hasDevice(sysDir, d.number) {
			return fmt.Errorf("%s (c %s): the guest's kernel has no driver for it: %s is neither built in nor among its modules", d.path, d.number, d.module)
		}
	}
	if spec.Process == nil || spec.Process.Capabilities == nil ||
		!slices.Contains(spec.Process.Capabilities.Bounding, "CAP_NET_ADMIN") {
		return nil
	}
	for _, name := range netAdminModules {
		if err := loadOnDemand(list, name); err != nil {
			return fmt.Errorf("load module for CAP_NET_ADMIN: %w", err)
		}
	}
	return nil
}

func hasDevice(sysDir, number string) bool {
	_, err := os.Stat(path.Join(sysDir, number))
	return err == nil
}
