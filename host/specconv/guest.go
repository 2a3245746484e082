package specconv

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Found is what is known only when a container is being made, after its plan is final.
type Found struct {
	// CPUs is the number of vCPUs to which the container is restricted, from the first on; 0:
	// it may use all.
	CPUs int `json:",omitempty"`
	// CgroupsPath is the name under which the container's processes see their cgroup; empty:
	// the agent chooses it.
	CgroupsPath string `json:",omitempty"`
	// Mounts are the plan's mounts, completed with what the host has found at their
	// destinations.
	Mounts []specs.Mount `json:",omitempty"`
	// Hostname and Domainname are for a container whose config has none.
	Hostname   string `json:",omitempty"`
	Domainname string `json:",omitempty"`
}

// GuestSpec returns the spec that the agent gets. It does not change the plan.
func (p *Plan) GuestSpec(found Found) *specs.Spec {
	guest, linux := *p.Guest, *p.Guest.Linux
	guest.Linux = &linux
	guest.Mounts = found.Mounts
	if guest.Hostname == "" {
		guest.Hostname = found.Hostname
	}
	if guest.Domainname == "" {
		guest.Domainname = found.Domainname
	}
	linux.CgroupsPath = found.CgroupsPath
	if found.CPUs > 0 {
		linux.Resources = restrictedTo(linux.Resources, found.CPUs)
	}
	return &guest
}

// restrictedTo returns resources whose cpuset is the first n vCPUs.
func restrictedTo(r *specs.LinuxResources, n int) *specs.LinuxResources {
	var restricted specs.LinuxResources
	if r != nil {
		restricted = *r
	}
	var cpu specs.LinuxCPU
	if restricted.CPU != nil {
		cpu = *restricted.CPU
	}
	cpu.Cpus = firstCPUs(n)
	restricted.CPU = &cpu
	return &restricted
}
