package main

import (
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/state"
	"github.com/huskvm/husk/supervisor/control"
)

// connection is a supervisor's service together with the directory it was found in.
type connection struct {
	*control.Client
	dir *state.Dir
}

func (c *connection) Close() {
	c.Client.Close()
	c.dir.Close()
}

// connect finds a container, refuses the verb where the status does not allow
// it, and connects to the supervisor. The supervisor checks the status again:
// it may have changed by then.
func connect(c *cli.Context, id string, verb state.Verb) (*state.Container, *connection, error) {
	dir, err := state.Open(c.String("root"), id)
	if err != nil {
		return nil, nil, err
	}
	container, err := dir.Load()
	if err == nil {
		err = state.Allowed(verb, id, container.Status())
	}
	if err != nil {
		dir.Close()
		return nil, nil, err
	}
	client, err := control.Connect(dir)
	if err != nil {
		dir.Close()
		// It has ended since its status was read, or is about to: say so in the
		// words of a stopped container.
		if !container.Supervisor.Alive() {
			err = state.Allowed(verb, id, state.Stopped)
		}
		return nil, nil, err
	}
	return container, &connection{Client: client, dir: dir}, nil
}
