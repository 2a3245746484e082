package supervisor

import (
	"path"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/protocol"
)

// Bootstrap is everything a supervisor is told, once, by create. After it, it
// reads nothing more of the bundle or the settings.
type Bootstrap struct {
	StateDir  string // absolute
	Container *state.Container
	Plan      *specconv.Plan
	// Found is what the cli has found out since; the supervisor adds to it.
	Found specconv.Found
	// Face are the plan's, each with a path; none where a stand-in shows them.
	Face    []specs.LinuxNamespace `json:",omitempty"`
	Walls   Walls
	Machine Machine
	// StandInPID is the container's pid as this process sees it, where that is not
	// its own.
	StandInPID int `json:",omitempty"`
	// Terminal asks for a pty whose master goes to the console socket.
	Terminal    bool
	ConsoleSize *specs.Box
	// BareNewlines keeps that pty from making \r\n of \n: the cli stands between
	// it and a terminal of its own, or none.
	BareNewlines bool
	// Descriptors of the cli's caller for the container's process, one
	// protocol.DescriptorKind each. They are passed by the names stdio.FileName gives.
	Descriptors []byte `json:",omitempty"`
	// FailuresDir is where to note why the virtual machine has ended under the
	// container.
	FailuresDir string
	// Build is the build both husk and its agent must be of.
	Build string
	Debug bool
}

// IDMapFile is the name by which a supervisor is passed the user namespace with the
// mappings of a share, which only who sees its pid in /proc could make.
//
// The last element of a share's name is anything.
func IDMapFile(s specconv.Share) string { return "idmap:" + path.Dir(s.Name) }

// FDVMMUsers is the name by which a supervisor is passed the user namespace of its vmm.
const FDVMMUsers = "vmm users"

// Walls are the limits of the container's network, with every setting decided.
type Walls struct {
	Forging network.Forging
	// AcceptUncarried: packet filters of the network namespace that the guest can't
	// have are logged only.
	AcceptUncarried bool
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
	FreePages    bool // the guest gives them back to the host
	BootTimeout  time.Duration
	// Template is what to wake up from instead of booting, nil for a boot.
	Template *Template
}

// Config is the VM in the hypervisor's terms, without what differs between two
// VMs of one kind: taps, directories, template files.
func (m *Machine) Config() hypervisor.Config {
	return hypervisor.Config{
		Binary: m.QEMU, Accel: m.Accel,
		MemoryMiB: m.MemoryMiB, VCPUs: m.VCPUs,
		Kernel: m.Kernel, Initrd: m.Initrd, Cmdline: strings.TrimSpace(protocol.AgentEnv + " " + m.KernelParams),
		ShareTag: specconv.ShareTag,
		Vsock:    m.Vsock, ChannelPort: protocol.ChannelPort,
		FreePageReporting: m.FreePages,
	}
}

// Template names a memory template and where to discard it should it not work.
type Template struct {
	Store   string // directory
	Key     string
	RAM     string
	Devices string
}
