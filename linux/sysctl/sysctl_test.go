package sysctl

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestName(t *testing.T) {
	for raw, want := range map[string]string{
		"net.ipv4.ip_forward":               "net.ipv4.ip_forward",
		"net/ipv4/ip_forward":               "net.ipv4.ip_forward",
		"net.ipv4.conf.eth0/100.forwarding": "net.ipv4.conf.eth0/100.forwarding",
		"net/ipv4/conf/eth0.100/forwarding": "net.ipv4.conf.eth0/100.forwarding",
		"kernel":                            "kernel",
	} {
		if got := Name(raw); got != want {
			t.Errorf("%s: got %s, want %s", raw, got, want)
		}
	}
}

func TestFile(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":               "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":               "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"net/ipv4/conf/eth0.100/forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"kernel":                            "kernel",
	} {
		if got := File(key); got != want {
			t.Errorf("%s: got %s, want %s", key, got, want)
		}
	}
}

func TestNamespace(t *testing.T) {
	for name, want := range map[string]specs.LinuxNamespaceType{
		"kernel.shmmax": specs.IPCNamespace, "kernel.shm_next_id": "", "fs.mqueue.queues_max": specs.IPCNamespace,
		"net.ipv4.ip_forward": specs.NetworkNamespace, "kernel.domainname": specs.UTSNamespace,
		"kernel.hostname": specs.UTSNamespace, "kernel.pid_max": "", "vm.swappiness": "", "network.x": "",
	} {
		if got := Namespace(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}
