// Package sysctl says how settings of the kernel are called, and to which namespace each
// belongs.
package sysctl

import (
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Name returns a key with dots between its elements, as sysctl(8) has it. The first of "."
// and "/" in the key is the separator, and the other may be part of an element:
// "net/ipv4/conf/eth0.1/x" becomes "net.ipv4.conf.eth0/1.x".
func Name(key string) string {
	if i := strings.IndexAny(key, "./"); i < 0 || key[i] == '.' {
		return key
	}
	return strings.Map(swap, key)
}

// File returns the path of a key below /proc/sys: "net.ipv4.conf.eth0/1.x" is
// "net/ipv4/conf/eth0.1/x".
func File(key string) string {
	if i := strings.IndexAny(key, "./"); i < 0 || key[i] == '/' {
		return key
	}
	return strings.Map(swap, key)
}

func swap(r rune) rune {
	switch r {
	case '.':
		return '/'
	case '/':
		return '.'
	}
	return r
}

// ipc are the settings of kernel.* that belong to the ipc namespace.
var ipc = map[string]bool{
	"kernel.msgmax": true, "kernel.msgmnb": true, "kernel.msgmni": true, "kernel.sem": true,
	"kernel.shmall": true, "kernel.shmmax": true, "kernel.shmmni": true, "kernel.shm_rmid_forced": true,
}

// Namespace is the namespace that the setting of a name, as Name returns it, belongs to;
// empty: it is the whole kernel's.
func Namespace(name string) specs.LinuxNamespaceType {
	switch {
	case ipc[name], strings.HasPrefix(name, "fs.mqueue."):
		return specs.IPCNamespace
	case strings.HasPrefix(name, "net."):
		return specs.NetworkNamespace
	case name == "kernel.domainname", name == "kernel.hostname":
		return specs.UTSNamespace
	}
	return ""
}
