package main

import (
	"fmt"
	"os"
	"path"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// demandFile lists the modules to load when their device is asked for: a line
	// has the name that drivers has and the path of a module it needs, or its own,
	// in dependency order. The guest room writes it.
	demandFile = "/lib/modules/demand"
	// sysDevices has an entry for each device number with a driver.
	sysDevices = "/sys/dev/char"
)

// driver is one of a character device that the kernel has a module for.
type driver struct {
	module string
	number string // "major:minor"
	path   string // of its node in devtmpfs, where a bind finds it
}

var drivers = []driver{
	{"fuse", "10:229", "/dev/fuse"},
	{"tun", "10:200", "/dev/net/tun"},
}

// netAdminModules are loaded for a container that may change its network: iptables
// in its older form does not have the kernel ask for these, but runs the image's
// modprobe, which has no modules. Hosts of containers have them loaded.
var netAdminModules = []string{"ip_tables", "ip6_tables"}

// wantedBy says whether a container has the device, as a node of its own or bound.
func (d driver) wantedBy(spec *specs.Spec) bool {
	if slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Type == "bind" && m.Source == d.path }) {
		return true
	}
	return spec.Linux != nil && slices.ContainsFunc(spec.Linux.Devices, func(n specs.LinuxDevice) bool {
		return (n.Type == "c" || n.Type == "u") && d.number == fmt.Sprintf("%d:%d", n.Major, n.Minor)
	})
}

// loadDrivers loads what the devices and capabilities of a container need. list is
// demandFile and sysDir sysDevices, but for tests.
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
