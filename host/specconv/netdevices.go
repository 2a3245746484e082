package specconv

import (
	"maps"
	"slices"
	"strings"
	"unicode"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// NetDevice is an interface of the host that is moved into the container's network namespace
// and named Name.
type NetDevice struct {
	HostName, Name string
}

// maxDeviceName is the kernel's IFNAMSIZ without the zero byte.
const maxDeviceName = 15

// validDeviceName applies the kernel's rule.
func validDeviceName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxDeviceName &&
		!strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) })
}

// validateNetDevices uses runc's words.
func validateNetDevices(l *specs.Linux) error {
	if len(l.NetDevices) == 0 {
		return nil
	}
	if !hasNamespace(l, specs.NetworkNamespace) {
		return fieldErrorf("linux.netDevices", "unable to move network devices without a NET namespace")
	}
	seen := map[string]bool{}
	for _, d := range netDevices(l) {
		field := key("linux.netDevices", d.HostName)
		switch {
		case !validDeviceName(d.HostName):
			return fieldErrorf(field, "invalid network device name %s", quote(d.HostName))
		case !validDeviceName(d.Name):
			return fieldErrorf(field+".name", "invalid network device name %s", quote(d.Name))
		case seen[d.Name]:
			return fieldErrorf(field+".name", "another network device is to be %s, too", quote(d.Name))
		}
		seen[d.Name] = true
	}
	return nil
}

func netDevices(l *specs.Linux) []NetDevice {
	var all []NetDevice
	for _, host := range slices.Sorted(maps.Keys(l.NetDevices)) {
		d := NetDevice{HostName: host, Name: l.NetDevices[host].Name}
		if d.Name == "" {
			d.Name = host
		}
		all = append(all, d)
	}
	return all
}
