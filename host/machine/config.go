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
	Kernel       string // ELF vmlinux
	Initrd       string
	KernelParams string
	Vsock        bool
	FreePages    bool // the guest gives them back to the host
	BootTimeout  time.Duration
	// Template is what to wake up from instead of booting, nil for a boot.
	Template *Template
}

// Hypervisor is the VM in the hypervisor's terms, without what differs between two
// VMs of one kind: taps, directories, template files.
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

// Template names a memory template and where to discard it should it not work.
type Template struct {
	Store   string // directory
	Key     string
	RAM     string
	Devices string
}

// Walls are the limits of the machine's network, with every setting decided.
type Walls struct {
	Forging network.Forging
	// AcceptUncarried: packet filters of the network namespace that the guest can't
	// have are logged only.
	AcceptUncarried bool
}
