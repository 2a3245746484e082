package lifecycle

import (
	"context"
	"errors"
	"time"

	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/limits"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor"
)

// Start runs the process of a created container, and then its poststart hooks. If a poststart
// hook fails the container is ended, as with runc and as version 1.3.0 of the spec says; the
// caller deletes it.
func Start(ctx context.Context, root, id string) error {
	container, err := start(ctx, root, id)
	if err != nil {
		return err
	}
	st := container.OCI(state.Running)
	err = hooks.Run(ctx, hooks.Of(container.Hooks).Poststart, "poststart", st, st.Bundle)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	return errors.Join(err, container.Supervisor.Kill(ctx))
}

// start releases a created container's process. It returns when its poststart hooks may run.
func start(ctx context.Context, root, id string) (*state.Container, error) {
	container, supervisor, err := control.Open(ctx, root, id, state.Start)
	if err != nil {
		return nil, err
	}
	var resp *control.StartResponse
	if err = limits.MakeRoom(ctx, supervisor.Dir, container); err == nil {
		resp, err = startWith(ctx, supervisor)
	}
	// A container that ends waits for connected callers.
	supervisor.Close()
	if err != nil {
		// If the program could not be executed, the container ends, and engines delete it next.
		ctx, cancel := context.WithTimeout(ctx, endGrace)
		defer cancel()
		_ = container.Supervisor.Wait(ctx)
		return nil, err
	}
	timings.From(ctx).Add(control.Phases(resp.Phases)...)
	timings.Lap(ctx, "start")
	if len(hooks.Of(container.Hooks).Poststart) > 0 {
		ctx, cancel := context.WithTimeout(ctx, poststartGrace(container.Accel))
		defer cancel()
		_ = container.Supervisor.Wait(ctx) // in both cases start goes on
	}
	return container, nil
}

// endGrace bounds how long a container whose start has failed may take to end.
const endGrace = 2 * time.Second

func startWith(ctx context.Context, supervisor *control.Connection) (*control.StartResponse, error) {
	timings.Lap(ctx, "connect to supervisor")
	resp, err := supervisor.Start(ctx, &control.StartRequest{})
	if err != nil {
		return nil, control.Error(err)
	}
	return resp, nil
}

// poststartGrace returns how long poststart hooks wait for a container that may be about to
// end. They run after the program has started. On a host a program that does something at once
// has done it before the hooks look; in a guest, above all an emulated one, its first
// instructions take longer than a hook.
func poststartGrace(accel string) time.Duration {
	if accel == string(hypervisor.TCG) {
		return 500 * time.Millisecond
	}
	return 50 * time.Millisecond
}
