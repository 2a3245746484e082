package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/state"
)

// Connection is a supervisor's service with the container's directory.
type Connection struct {
	*Client
	Dir *state.Dir
}

// Close closes both.
func (c *Connection) Close() {
	c.Client.Close()
	c.Dir.Close()
}

// Open finds a container, returns an error if its status does not allow the verb, and connects
// to the supervisor. The supervisor checks the status again, because it may have changed by
// then.
func Open(ctx context.Context, root, id string, verb state.Verb) (*state.Container, *Connection, error) {
	container, dir, err := state.OpenFor(verb, root, id)
	if err != nil {
		return nil, nil, err
	}
	client, err := ConnectFor(ctx, dir, container, verb)
	if err != nil {
		dir.Close()
		return nil, nil, err
	}
	return container, &Connection{Client: client, Dir: dir}, nil
}

// endTimeout bounds how long a supervisor that no longer answers may take to end.
const endTimeout = 5 * time.Second

// ErrNoAnswer is returned for a supervisor that was stopped or hangs.
var ErrNoAnswer = errors.New("the supervisor has not answered")

// AwaitOOM is the call of events that waits until something happens.
const AwaitOOM state.Verb = "events (memory)"

// killTimeout bounds how long a supervisor may take to answer kill. The supervisor gives the
// guest 10 seconds.
const killTimeout = 15 * time.Second

// answerTimeout bounds how long a supervisor may take to answer a verb about a container.
// bounded is false for a start with a startContainer hook without a timeout, and for events,
// which wait for something that may never happen.
func answerTimeout(verb state.Verb, container *state.Container) (limit time.Duration, bounded bool) {
	switch verb {
	case state.Start:
		more, bounded := hooks.Timeout(hooks.Of(container.Hooks).StartContainer)
		return AnswerTimeout + more, bounded
	case state.Kill:
		return killTimeout, true
	case AwaitOOM:
		return 0, false
	}
	return AnswerTimeout, true
}

// ConnectFor connects to a container's supervisor for a verb. Calls of the client have the
// deadline of that verb. If the supervisor has ended since its status was read, or ends before
// it answers, the error is that of a stopped container.
func ConnectFor(ctx context.Context, dir *state.Dir, container *state.Container, verb state.Verb) (*Client, error) {
	logrus.Debugf("%s container %s: the supervisor is process %d", verb, container.ID, container.Supervisor.PID)
	relay := FollowLog(dir)
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
	client, err := Connect(dir, ttrpc.WithUnaryClientInterceptor(
		func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
			limit, bounded := answerTimeout(verb, container)
			if bounded {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, limit, ErrNoAnswer)
				defer cancel()
			}
			err := invoke(ctx, req, resp)
			switch {
			case errors.Is(err, ttrpc.ErrClosed):
				err = stopped(ctx, err)
			case err != nil && errors.Is(context.Cause(ctx), ErrNoAnswer):
				err = fmt.Errorf("%s container %s: %w within %s (process %d): husk delete --force ends it",
					verb, container.ID, ErrNoAnswer, limit, container.Supervisor.PID)
			}
			return err
		}))
	if err != nil && !container.Supervisor.Alive() {
		err = stopped(ctx, err)
	}
	if client != nil {
		client.relay = relay
	}
	return client, err
}
