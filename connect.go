package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
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
	container, dir, err := find(c, id, verb)
	if err != nil {
		return nil, nil, err
	}
	client, err := dial(c.Context, dir, container, verb)
	if err != nil {
		dir.Close()
		return nil, nil, err
	}
	return container, &connection{Client: client, dir: dir}, nil
}

// find opens a container's directory and refuses the verb where the status does
// not allow it.
func find(c *cli.Context, id string, verb state.Verb) (*state.Container, *state.Dir, error) {
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
	return container, dir, nil
}

// endTimeout is how long a supervisor that does not answer any more may take to
// be gone.
const endTimeout = 5 * time.Second

// errNoAnswer is for a supervisor that is stopped or hangs.
var errNoAnswer = errors.New("the supervisor has not answered")

// supervisorTimeout is how long a supervisor may take to answer a verb.
const supervisorTimeout = control.AnswerTimeout

// answerTimeout is how long a supervisor may take to answer a verb about a container.
// A start is not bounded if a startContainer hook is not, and events wait for what may
// never happen.
func answerTimeout(verb state.Verb, container *state.Container) (limit time.Duration, bounded bool) {
	switch verb {
	case state.Start:
		more, bounded := hooks.Timeout(hooks.Of(container.Hooks).StartContainer)
		return supervisorTimeout + more, bounded
	case state.Kill:
		return killTimeout, true
	case awaitOOM:
		return 0, false
	}
	return supervisorTimeout, true
}

// dial connects to a container's supervisor. One that has ended since its status
// was read, or ends before it answers, is spoken of in the words of a stopped
// container.
func dial(ctx context.Context, dir *state.Dir, container *state.Container, verb state.Verb) (*control.Client, error) {
	stopped := func(ctx context.Context, err error) error {
		ctx, cancel := context.WithTimeout(ctx, endTimeout)
		defer cancel()
		if container.Supervisor.Wait(ctx) != nil {
			return err
		}
		if refused := state.Allowed(verb, container.ID, state.Stopped); refused != nil {
			return refused
		}
		return err
	}
	client, err := control.Connect(dir, ttrpc.WithUnaryClientInterceptor(
		func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
			limit, bounded := answerTimeout(verb, container)
			if bounded {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, limit, errNoAnswer)
				defer cancel()
			}
			err := invoke(ctx, req, resp)
			switch {
			case errors.Is(err, ttrpc.ErrClosed):
				err = stopped(ctx, err)
			case err != nil && errors.Is(context.Cause(ctx), errNoAnswer):
				err = fmt.Errorf("%s container %s: %w within %s (process %d): husk delete --force ends it",
					verb, container.ID, errNoAnswer, limit, container.Supervisor.PID)
			}
			return err
		}))
	if err != nil && !container.Supervisor.Alive() {
		err = stopped(ctx, err)
	}
	return client, err
}
