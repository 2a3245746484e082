package supervisor

import (
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/specconv"
	"github.com/huskvm/husk/state"
)

// Bootstrap is everything a supervisor is told, once, by create. After it, it
// reads nothing more of the bundle or the settings.
type Bootstrap struct {
	StateDir  string // absolute
	Container *state.Container
	Plan      *specconv.Plan
	Machine   Machine
	// Terminal asks for a pty whose master goes to the console socket.
	Terminal    bool
	ConsoleSize *specs.Box
	// Build is the build both husk and its agent must be of.
	Build string
	Debug bool
}

// Machine is the VM with every setting and default decided.
type Machine struct {
	QEMU         string // absolute
	Accel        hypervisor.Accel
	MemoryMiB    int
	VCPUs        int
	NICs         int
	Kernel       string // ELF vmlinux
	Initrd       string
	KernelParams string
	Vsock        bool
	BootTimeout  time.Duration
}
