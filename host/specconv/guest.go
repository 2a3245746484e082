package specconv

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Found is what is known only while a container is made, when its plan is final.
type Found struct {
	// CPUs is to how many vCPUs of the machine, the first ones, the container is
	// restricted; 0: it may use all.
	CPUs int `json:",omitempty"`
	// CgroupsPath is how the container's processes are to see their cgroup called; empty:
	// as the agent has it.
	CgroupsPath string `json:",omitempty"`
	// Mounts are the plan's, with what the host has found out of their places.
	Mounts []specs.Mount `json:",omitempty"`
	// Hostname and Domainname are for a container that has none of its own.
	Hostname   string `json:",omitempty"`
	Domainname string `json:",omitempty"`
}

// GuestSpec is the spec that the agent receives. The plan stays as it is.
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

// restrictedTo returns the resources with the first n vCPUs for a cpuset.
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
