package supervisor

import (
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
)

// Bootstrap is everything that create tells a supervisor, once. After it the supervisor reads
// nothing of the bundle or the settings.
type Bootstrap struct {
	StateDir  string // absolute
	Container *state.Container
	Plan      *specconv.Plan
	// Found is what the cli has found out after the plan was made. The supervisor adds to it.
	Found specconv.Found
	// Face are the plan's, each with a path. It is empty if a stand-in shows them.
	Face    []specs.LinuxNamespace `json:",omitempty"`
	Walls   machine.Walls
	Machine machine.Config
	// StandInPID is the container's pid in this process's pid namespace, if that is a
	// stand-in's; else 0.
	StandInPID int `json:",omitempty"`
	// Terminal: make a pty and send its master to the console socket.
	Terminal    bool
	ConsoleSize *specs.Box
	// BareNewlines: that pty does not write \r\n for \n, because the cli copies between it and
	// a terminal of its own, or a plain stream.
	BareNewlines bool
	// Descriptors are the kinds (protocol.DescriptorKind) of passed descriptors for the
	// container's process. Their names are those of stdio.FileName.
	Descriptors []byte `json:",omitempty"`
	// FailuresDir is the directory in which to note why the virtual machine has ended.
	FailuresDir string
	// Build is the build that husk and its agent must have.
	Build string
	Debug bool
}

// IDMapFile returns the name of the passed file that is the user namespace with the mappings of
// a share. The cli makes it, because only a process that sees the namespace's pid in /proc can.
//
// The last element of a share's name may be anything, so it is left out.
func IDMapFile(s specconv.Share) string { return "idmap:" + path.Dir(s.Name) }

// FDVMMUsers is the name of the passed file that is the user namespace of the vmm.
const FDVMMUsers = "vmm users"
