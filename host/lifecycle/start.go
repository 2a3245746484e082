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

// Start runs the process of a created container, and then its poststart hooks: one
// that fails is the end of the container, as with runc and as specification 1.3.0
// has it. To delete it is the caller's.
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

// start releases a created container's process, and returns when it is time for
// its poststart hooks.
func start(ctx context.Context, root, id string) (*state.Container, error) {
	container, supervisor, err := control.Open(ctx, root, id, state.Start)
	if err != nil {
		return nil, err
	}
	var resp *control.StartResponse
	if err = limits.MakeRoom(ctx, supervisor.Dir, container); err == nil {
		resp, err = startWith(ctx, supervisor)
	}
	// A container that ends waits for whoever is connected.
	supervisor.Close()
	if err != nil {
		// A program that could not be executed was the container's end, and engines
		// delete the container next.
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
		_ = container.Supervisor.Wait(ctx) // either way it is time
	}
	return container, nil
}

// endGrace is how long a container whose start failed may take to end, if it does.
const endGrace = 2 * time.Second

func startWith(ctx context.Context, supervisor *control.Connection) (*control.StartResponse, error) {
	timings.Lap(ctx, "connect to supervisor")
	resp, err := supervisor.Start(ctx, &control.StartRequest{})
	if err != nil {
		return nil, control.Error(err)
	}
	return resp, nil
}

// poststartGrace is how long poststart hooks wait for a container that may be
// about to end. They come after the program: what it does at once is done before
// they look, with runc on any host, but in a guest, above all an emulated one, its
// first instructions take longer than it takes to run a hook.
func poststartGrace(accel string) time.Duration {
	if accel == string(hypervisor.TCG) {
		return 500 * time.Millisecond
	}
	return 50 * time.Millisecond
}
