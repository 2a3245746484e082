package state

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Status is one of the spec's status words (runtime.md, "State"), or Paused,
// which runc adds and engines know.
type Status string

// The words.
const (
	Creating Status = Status(specs.StateCreating)
	Created  Status = Status(specs.StateCreated)
	Running  Status = Status(specs.StateRunning)
	Paused   Status = "paused"
	Stopped  Status = Status(specs.StateStopped)
)

// Verb is a command that depends on the status of its container.
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

// transitions says for each verb what happens in each status: ok, or the text
// of the refusal. The texts are runc's to the letter, since engines match them;
// %s is the container's id. A status without an entry gets the general text.
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
		// Engines delete what they created and never started; the spec would
		// refuse, runc and crun do not.
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

// Error is a verb refused because of the container's status.
type Error struct {
	Verb   Verb
	ID     string
	Status Status
}

// Error gives runc's text where runc has one; it always allows to tell verb, id
// and status apart.
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

// Allowed returns nil when verb may be done to a container in status, else an *Error.
func Allowed(verb Verb, id string, status Status) error {
	if text, known := transitions[verb][status]; known && text == ok {
		return nil
	}
	return &Error{Verb: verb, ID: id, Status: status}
}
