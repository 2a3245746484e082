package machine

import (
	"strings"
	"time"

	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/protocol"
)

// Config is the VM with every setting and default decided.
type Config struct {
	QEMU         string // absolute
	Accel        hypervisor.Accel
	MemoryMiB    int
	VCPUs        int
	NICs         int
	Kernel       string // an ELF vmlinux
	Initrd       string
	KernelParams string
	Vsock        bool
	FreePages    bool // the guest gives freed pages back to the host
	BootTimeout  time.Duration
	// Template is the template to wake up from; nil: the VM boots.
	Template *Template
}

// Hypervisor returns the VM as package hypervisor takes it, without what may differ between two
// VMs of one kind: taps, directories and template files.
func (c *Config) Hypervisor() hypervisor.Config {
	return hypervisor.Config{
		Binary: c.QEMU, Accel: c.Accel,
		MemoryMiB: c.MemoryMiB, VCPUs: c.VCPUs,
		Kernel: c.Kernel, Initrd: c.Initrd, Cmdline: strings.TrimSpace(protocol.AgentEnv + " " + c.KernelParams),
		ShareTag: specconv.ShareTag,
		Vsock:    c.Vsock, ChannelPort: protocol.ChannelPort,
		FreePageReporting: c.FreePages,
	}
}

// Template names a memory template, and the store from which it is discarded if it does not
// work.
type Template struct {
	Store   string // directory
	Key     string
	RAM     string
	Devices string
}

// Walls are the restrictions of the machine's network, with every setting decided.
type Walls struct {
	Spoofing network.Spoofing
	// AcceptUncarried: packet filters of the network namespace that the guest cannot have are
	// only logged.
	AcceptUncarried bool
}
