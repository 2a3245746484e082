package state

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Status is a status of the spec (runtime.md, "State"), or Paused, which runc has in addition
// and engines know.
type Status string

// The statuses.
const (
	Creating Status = Status(specs.StateCreating)
	Created  Status = Status(specs.StateCreated)
	Running  Status = Status(specs.StateRunning)
	Paused   Status = "paused"
	Stopped  Status = Status(specs.StateStopped)
)

// Verb is a command whose permission depends on the container's status.
type Verb string

// The verbs.
const (
	Start  Verb = "start"
	Kill   Verb = "kill"
	Delete Verb = "delete"
	Exec   Verb = "exec"
	Pause  Verb = "pause"
	Resume Verb = "resume"
	Update Verb = "update"
	Events Verb = "events"
	Ps     Verb = "ps"
)

// ok marks a verb as allowed in the table.
const ok = ""

// transitions says for each verb and status whether the verb is allowed (ok), or gives the text
// of the error. The texts are exactly runc's, because engines match them; %s is the container's
// id. A status without an entry gets a general text.
var transitions = map[Verb]map[Status]string{
	Start: {
		Created: ok,
		Running: "cannot start an already running container",
		Paused:  "cannot start a container in the paused state",
		Stopped: "cannot start a container that has stopped",
	},
	Kill: {
		Created: ok, Running: ok, Paused: ok,
		Stopped: "container not running",
	},
	Delete: {
		// Engines delete containers that they have created and never started. The spec forbids
		// that; runc and crun allow it.
		Created: ok, Stopped: ok,
		Creating: "cannot delete container %s that is not stopped: creating",
		Running:  "cannot delete container %s that is not stopped: running",
		Paused:   "cannot delete container %s that is not stopped: paused",
	},
	Exec: {
		Created: ok, Running: ok,
		Paused:  "cannot exec in a paused container (use --ignore-paused to override)",
		Stopped: "cannot exec in a stopped container",
	},
	Pause: {
		Created: ok, Running: ok,
		Paused:  "container not running",
		Stopped: "container not running",
	},
	Resume: {
		Paused:  ok,
		Created: "container not paused",
		Running: "container not paused",
		Stopped: "container not paused",
	},
	Update: {
		Created: ok, Running: ok, Paused: ok,
		Stopped: "container not running",
	},
	Events: {
		Created: ok, Running: ok, Paused: ok,
		Stopped: "container with id %s is not running",
	},
	Ps: {
		Created: ok, Running: ok, Paused: ok,
		Stopped: "container not running",
	},
}

// Error is returned for a verb that the container's status does not allow.
type Error struct {
	Verb   Verb
	ID     string
	Status Status
}

// Error returns runc's text for this verb and status, or a general one that names verb, id and
// status.
func (e *Error) Error() string {
	text, known := transitions[e.Verb][e.Status]
	switch {
	case !known:
		return fmt.Sprintf("cannot %s container %s: it is %s", e.Verb, e.ID, e.Status)
	case strings.Contains(text, "%s"):
		return fmt.Sprintf(text, e.ID)
	}
	return text
}

// Allowed returns nil if the status allows the verb, else an *Error.
func Allowed(verb Verb, id string, status Status) error {
	if text, known := transitions[verb][status]; known && text == ok {
		return nil
	}
	return &Error{Verb: verb, ID: id, Status: status}
}
