// Package namespaces says what the kernel calls the namespaces of the OCI specification.
package namespaces

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

type names struct {
	flag int
	file string
}

var kinds = map[specs.LinuxNamespaceType]names{
	specs.PIDNamespace:     {unix.CLONE_NEWPID, "pid"},
	specs.NetworkNamespace: {unix.CLONE_NEWNET, "net"},
	specs.MountNamespace:   {unix.CLONE_NEWNS, "mnt"},
	specs.IPCNamespace:     {unix.CLONE_NEWIPC, "ipc"},
	specs.UTSNamespace:     {unix.CLONE_NEWUTS, "uts"},
	specs.CgroupNamespace:  {unix.CLONE_NEWCGROUP, "cgroup"},
	specs.TimeNamespace:    {unix.CLONE_NEWTIME, "time"},
	specs.UserNamespace:    {unix.CLONE_NEWUSER, "user"},
}

// Flag is the CLONE_NEW* of a namespace; 0: there is none of that type.
func Flag(t specs.LinuxNamespaceType) int { return kinds[t].flag }

// File is the name of a namespace below /proc/PID/ns; empty: there is none of that type.
func File(t specs.LinuxNamespaceType) string { return kinds[t].file }
