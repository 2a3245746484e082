// Package lifecycle is what the verbs start, kill and delete do to a container that has
// been created, by its saved state.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/state"
)

// deleteTimeout bounds the wait for what has been killed to be gone and for
// another husk call to let go of the container.
const deleteTimeout = 30 * time.Second

// Delete deletes a container. With force it ends one that runs, and one that does
// not exist, or that somebody else deletes meanwhile, is no error.
func Delete(ctx context.Context, root, id string, force bool) error {
	// Where a create of this id was killed at its very beginning there is nothing else.
	defer state.Sweep(root)
	err := deleteExisting(ctx, root, id, force)
	if force && errors.Is(err, state.ErrNotExist) {
		return nil
	}
	return err
}

// deleteExisting works from the container's state directory alone: no supervisor
// has to live or answer.
func deleteExisting(parent context.Context, root, id string, force bool) error {
	dir, err := state.Open(root, id)
	if err != nil {
		return err
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(parent, deleteTimeout)
	defer cancel()
	container, err := endAndLock(ctx, dir, id, force)
	if errors.Is(err, state.ErrDamaged) && force {
		return deleteDamaged(ctx, dir, id, err)
	}
	if err != nil {
		return err
	}
	if err := Remove(ctx, dir, container); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	// The spec: a failing poststop hook is logged and nothing else.
	st := container.OCI(state.Stopped)
	hooks.RunAll(parent, hooks.Of(container.Hooks).Poststop, "poststop", st, st.Bundle, warn)
	return nil
}

// lockSlice is how long delete waits for the lock before it looks again whom it has to
// end: a create under way holds the lock until its supervisor fails it.
const lockSlice = 200 * time.Millisecond

// endAndLock ends the supervisor of a container that may be deleted, and locks the
// container. Whether it may is asked again once it is locked: a create may have gone
// on until then, or somebody else have deleted it.
func endAndLock(ctx context.Context, dir *state.Dir, id string, force bool) (*state.Container, error) {
	for locked := false; ; {
		container, err := dir.Load()
		if err != nil {
			return nil, err
		}
		if err := state.Allowed(state.Delete, id, container.Status()); err != nil && !force {
			return nil, err
		}
		if err := dir.EndSupervisor(ctx, container.Supervisor); err != nil {
			return nil, err
		}
		if locked {
			return container, nil
		}
		slice, cancel := context.WithTimeout(ctx, lockSlice)
		err = dir.Lock(slice)
		cancel()
		if err != nil && (ctx.Err() != nil || slice.Err() == nil) {
			return nil, err
		}
		locked = err == nil
		if !locked && force {
			if err := dir.KillStoppedHolder(ctx); err != nil {
				return nil, err
			}
		}
	}
}

// deleteDamaged is for a container of which nothing is known but its directory. What
// there is to remove is read from its supervisor, as long as that lives.
func deleteDamaged(ctx context.Context, dir *state.Dir, id string, damage error) error {
	logrus.Warnf("container %s: %v: deleting what can be found of it", id, damage)
	supervisors, err := dir.Listeners()
	if err != nil {
		return err
	}
	found := &state.Container{ID: id}
	for _, p := range supervisors {
		if found.Cgroup, err = cgroup.Of(p.PID, id); err != nil {
			logrus.Warn(err) // it may have ended just now
		}
		// Open, so that it outlives the process.
		if ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", p.PID)); err == nil {
			defer ns.Close()
			found.Network = &state.Network{HostPath: fmt.Sprintf("/proc/self/fd/%d", ns.Fd())}
		}
		if err := p.Kill(ctx); err != nil {
			return err
		}
	}
	if err := dir.Lock(ctx); err != nil {
		return err
	}
	if err := Remove(ctx, dir, found); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return nil
}

// warn is for failures that change nothing.
func warn(err error) { logrus.Warn(err) }

// Remove removes what a container whose supervisor is gone has left on
// the host. Mounts, taps and the vmm went with the supervisor.
func Remove(ctx context.Context, dir *state.Dir, c *state.Container) error {
	if c.Network != nil {
		if err := network.Leave(c.Network.HostPath, c.Network.TapIndexes...); err != nil {
			return err
		}
	}
	if c.Cgroup != nil {
		if err := c.Cgroup.Remove(ctx); err != nil {
			return err
		}
	}
	return dir.Remove()
}
