package state

import (
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/cgroup"
)

// Container is what is saved of one container. create writes it; from the
// moment the supervisor has its bootstrap, only the supervisor does.
type Container struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"` // absolute
	Rootfs      string            `json:"rootfs"` // absolute
	Created     time.Time         `json:"created"`
	Owner       string            `json:"owner"`
	Annotations map[string]string `json:"annotations,omitempty"` // of config.json
	Accel       string            `json:"accel"`                 // in use; `state` says it in an annotation, hooks get config.json's alone

	// Saved is the status as last written. Whoever wants to know the status asks
	// Status, which also looks whether the supervisor lives.
	Saved Status `json:"status"`
	// Creator is the create under way, for as long as there is no supervisor yet.
	Creator    Process `json:"creator"`
	Supervisor Process `json:"supervisor"`

	// Hooks are those still to run when later verbs come: the bundle may have
	// changed or gone by then.
	Hooks *specs.Hooks `json:"hooks,omitempty"`

	// Process is the container's own, for what exec takes over from it.
	Process *specs.Process `json:"process,omitempty"`

	// NetworkProblem is what the container lacks of its network now, empty: nothing.
	NetworkProblem string `json:"networkProblem,omitempty"`

	// HandedTo is who has the container, where it is none of husk's; nil: husk has. Then
	// nothing else here says anything of the container but its ID, and who makes it.
	HandedTo *Handed `json:"handedTo,omitempty"`

	// Cgroup and Network are what delete must remove when no supervisor is left
	// to do it.
	Cgroup  *cgroup.Group `json:"cgroup,omitempty"`
	Network *Network      `json:"network,omitempty"`
}

// Handed is the OCI runtime of the host's that a container was handed to.
type Handed struct {
	Runtime string `json:"runtime"` // absolute path of its executable
	Root    string `json:"root"`    // its --root, which has this container alone
}

// Network is where a supervisor's redirections may be left on interfaces that
// outlive it: in a network namespace that husk joined by its path.
type Network struct {
	HostPath   string `json:"hostPath"`
	TapIndexes []int  `json:"tapIndexes"`
}

// Status is the container's status now: the saved word while the supervisor
// lives, stopped without it. Before there is one, whoever makes it counts.
func (c *Container) Status() Status {
	process := c.Supervisor
	if process.PID == 0 {
		process = c.Creator
	}
	if !process.Alive() {
		return Stopped
	}
	return c.Saved
}

// OCI is the container's state in the spec's form, as hooks read it from their
// stdin. A stopped container has no pid.
func (c *Container) OCI(status Status) *specs.State {
	s := &specs.State{
		Version:     c.OCIVersion,
		ID:          c.ID,
		Status:      specs.ContainerState(status),
		Bundle:      c.Bundle,
		Annotations: c.Annotations,
	}
	if status != Stopped {
		s.Pid = c.Supervisor.PID
	}
	return s
}
