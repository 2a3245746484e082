package state

import (
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/cgroup"
)

// Container is what is saved of one container. create writes it until the supervisor has its
// bootstrap; from then on only the supervisor does.
type Container struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"` // absolute
	Rootfs      string            `json:"rootfs"` // absolute
	Created     time.Time         `json:"created"`
	Owner       string            `json:"owner"`
	Annotations map[string]string `json:"annotations,omitempty"` // from config.json
	Accel       string            `json:"accel"`                 // in use; `state` says it in an annotation, hooks get config.json's alone

	// Saved is the status that was written last. Use Status to get the present one, because
	// that checks whether the supervisor is alive.
	Saved Status `json:"status"`
	// Creator is the create that is running. It is empty when there is a supervisor.
	Creator    Process `json:"creator"`
	Supervisor Process `json:"supervisor"`

	// Hooks are the hooks that later verbs run. They are saved because the bundle may have
	// changed or gone by then.
	Hooks *specs.Hooks `json:"hooks,omitempty"`

	// Process is the process of config.json. exec takes over some of its fields.
	Process *specs.Process `json:"process,omitempty"`

	// NetworkProblem says what the container lacks of its network now; empty: nothing.
	NetworkProblem string `json:"networkProblem,omitempty"`

	// HandedTo is the runtime that has the container, if husk has not; nil: husk has it. Then
	// of the other fields only the id and the creator mean anything.
	HandedTo *Handed `json:"handedTo,omitempty"`

	// Cgroup and Network are what delete has to remove if the supervisor cannot do it any more.
	Cgroup  *cgroup.Group `json:"cgroup,omitempty"`
	Network *Network      `json:"network,omitempty"`
}

// Handed is an OCI runtime of the host to which a container was handed over.
type Handed struct {
	Runtime string `json:"runtime"` // absolute path of its executable
	Root    string `json:"root"`    // its --root, which has only this container
}

// Network says where a dead supervisor's redirections may be left: on interfaces of a network
// namespace that husk joined by its path, which outlives the supervisor.
type Network struct {
	HostPath   string `json:"hostPath"`
	TapIndexes []int  `json:"tapIndexes"`
}

// Status returns the container's status now: the saved one while the supervisor is alive, else
// stopped. If there is no supervisor yet, the create that is running counts instead.
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

// OCI returns the container's state in the spec's form, as hooks get it on stdin. A stopped
// container has no pid.
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
