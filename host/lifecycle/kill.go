package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
)

// Kill sends a signal to a container's process or, with all, to every process of the container.
func Kill(ctx context.Context, root, id string, sig unix.Signal, all bool) error {
	container, dir, err := state.OpenFor(state.Kill, root, id)
	if err == nil {
		defer dir.Close()
		err = sendSignal(ctx, dir, container, sig, all)
	}
	if refused := new(state.Error); all && errors.As(err, &refused) && refused.Status == state.Stopped {
		// Engines send a last kill --all to a container that may have ended, and expect
		// success.
		return nil
	}
	if container == nil {
		return err
	}
	if sig != unix.SIGKILL {
		return err
	}
	if err != nil {
		return killSupervisor(ctx, dir, container, err)
	}
	// With runc the process is gone at once, so a delete that follows succeeds. Here its last
	// output and files may still be on their way, so kill waits a moment. If a container takes
	// longer because nobody reads its output, kill does not fail.
	ctx, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	_ = container.Supervisor.Wait(ctx)
	return nil
}

// killGrace bounds how long kill waits after SIGKILL until a container has ended.
const killGrace = 5 * time.Second

// sendSignal makes the supervisor send a signal. It disconnects at once, because a container
// that ends waits for connected callers.
func sendSignal(ctx context.Context, dir *state.Dir, container *state.Container, sig unix.Signal, all bool) error {
	if sig == unix.SIGKILL && container.Supervisor.Suspended() {
		return fmt.Errorf("%w: it is stopped", control.ErrNoAnswer)
	}
	supervisor, err := control.ConnectFor(ctx, dir, container, state.Kill)
	if err != nil {
		return err
	}
	defer supervisor.Close()
	_, err = supervisor.Kill(ctx, &control.KillRequest{Signal: uint32(sig), All: all})
	return control.Error(err)
}

// killSupervisor is called if the supervisor has not delivered a SIGKILL. If it does not answer
// it is killed itself, and the virtual machine ends with it. If it answers with an error, that
// is the reason, for example that the container has ended.
func killSupervisor(ctx context.Context, dir *state.Dir, container *state.Container, reason error) error {
	if !errors.Is(reason, control.ErrNoAnswer) && !errors.Is(reason, unix.ECONNREFUSED) && !errors.Is(reason, fs.ErrNotExist) {
		return reason
	}
	logrus.Debugf("kill the supervisor itself: %v", reason)
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	return dir.EndSupervisor(ctx, container.Supervisor)
}
