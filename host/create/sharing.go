package create

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/linux/namespaces"
	"github.com/huskvm/husk/linux/syscalls"
)

// shared are the namespaces that a container joins in order to share something with another
// container.
var shared = []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace}

// refuseSharing refuses to join a namespace of another container of husk's: its content is in
// that container's virtual machine, and this container would find it empty. A namespace of the
// host can be joined.
func refuseSharing(root string, spec *specs.Spec) error {
	var others []*state.Container
	for _, ns := range spec.Linux.Namespaces {
		if !slices.Contains(shared, ns.Type) || ns.Path == "" {
			continue
		}
		wanted, err := syscalls.NamespaceOf(ns.Path)
		if err != nil {
			return fmt.Errorf("open %s namespace: %w", ns.Type, err)
		}
		if others == nil {
			if others, _, err = state.List(root); err != nil {
				return err
			}
		}
		for _, other := range others {
			has, err := syscalls.NamespaceOf(fmt.Sprintf("/proc/%d/ns/%s", other.Supervisor.PID, namespaces.File(ns.Type)))
			if err == nil && has == wanted && other.Supervisor.Alive() {
				return fmt.Errorf("linux.namespaces: the %s namespace is that of container %s, a virtual machine of its own: containers that share one are not supported yet", ns.Type, other.ID)
			}
		}
	}
	return nil
}

// refuseOccupied refuses a network namespace in which processes of another container live: the
// guest would take their interfaces. If an engine keeps a namespace by a mount, no process is
// in it. It returns a warning for each process of the host in the namespace.
func refuseOccupied(spec *specs.Spec) (warnings []string, err error) {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type != specs.NetworkNamespace || ns.Path == "" {
			continue
		}
		own, err := syscalls.NamespaceOf("/proc/self/ns/net")
		if err != nil {
			return nil, err
		}
		if wanted, err := syscalls.NamespaceOf(ns.Path); err == nil && wanted == own {
			return nil, fmt.Errorf("linux.namespaces: %s: %w", ns.Path, network.ErrHostNamespace)
		}
		occupants, err := network.Occupants(ns.Path)
		if err != nil {
			return nil, err
		}
		for _, o := range occupants {
			if !o.Visits {
				return nil, fmt.Errorf("linux.namespaces: process %d (%q) of another container lives in the network namespace %s and would lose its network to the virtual machine: "+
					"containers that share one network (--network container:ID, pods) are not supported yet", o.PID, o.Command, ns.Path)
			}
			warnings = append(warnings, fmt.Sprintf("process %d (%q) in the network namespace %s has no network as long as the container runs", o.PID, o.Command, ns.Path))
		}
	}
	return warnings, nil
}
