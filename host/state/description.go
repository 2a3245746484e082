package state

import (
	"maps"
	"time"

	"github.com/huskvm/husk/host/specconv"
)

// Description is what state and list print, in runc's form. CRI-O decodes it into a struct of
// its own: never add a field named created, started, finished, exitCode, oomKilled, error or
// initPid with another type than that struct has.
type Description struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"` // 0 if it has stopped
	Status      Status            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

// Describe describes a container as it is now.
func Describe(c *Container) Description {
	status := c.Status()
	if c.HandedTo != nil {
		return Description{
			Version: c.OCIVersion, ID: c.ID, Status: status, Bundle: c.Bundle, Created: c.Created,
			Annotations: map[string]string{specconv.AnnotationIsolation: specconv.IsolationRunc},
		}
	}
	d := Description{
		Version: c.OCIVersion, ID: c.ID, Status: status, Bundle: c.Bundle, Rootfs: c.Rootfs,
		Created: c.Created, Annotations: withAccel(c.Annotations, c.Accel), Owner: c.Owner,
	}
	if status != Stopped {
		d.PID = c.Supervisor.PID
		if c.NetworkProblem != "" {
			d.Annotations = with(d.Annotations, annotationNetworkProblem, c.NetworkProblem)
		}
	}
	return d
}

// withAccel adds the accelerator that the virtual machine uses, in place of the one that was
// asked for.
func withAccel(annotations map[string]string, accel string) map[string]string {
	if accel == "" {
		return annotations // not known yet
	}
	return with(annotations, specconv.AnnotationAccel, accel)
}

// annotationNetworkProblem is printed by state only. It says what a running container lacks of
// its network, which no verb of the user has failed for.
const annotationNetworkProblem = "org.huskvm.network_problem"

func with(annotations map[string]string, name, value string) map[string]string {
	all := maps.Clone(annotations)
	if all == nil {
		all = map[string]string{}
	}
	all[name] = value
	return all
}
