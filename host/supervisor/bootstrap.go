package supervisor

import (
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
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
	Walls   machine.Walls
	Machine machine.Config
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
