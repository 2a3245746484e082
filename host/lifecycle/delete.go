// Package lifecycle is what the verbs start, kill and delete do to a created container, by its
// saved state.
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

// deleteTimeout bounds the wait for killed processes to end, and for another husk call to
// release the container.
const deleteTimeout = 30 * time.Second

// Delete deletes a container. With force it ends a running one, and it is no error if the
// container does not exist or somebody else deletes it meanwhile.
func Delete(ctx context.Context, root, id string, force bool) error {
	// If a create of this id was killed at its very beginning, this removes what it has left.
	defer state.Sweep(root)
	err := deleteExisting(ctx, root, id, force)
	if force && errors.Is(err, state.ErrNotExist) {
		return nil
	}
	return err
}

// deleteExisting needs only the container's state directory: the supervisor need not be alive
// or answer.
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
	logrus.Debugf("container %s: process %d has ended", id, container.Supervisor.PID)
	if err := Remove(ctx, dir, container); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	logrus.Debugf("container %s: cgroups and %s are removed", id, dir.Path)
	// The spec says that a failing poststop hook is only logged.
	st := container.OCI(state.Stopped)
	hooks.RunAll(parent, hooks.Of(container.Hooks).Poststop, "poststop", st, st.Bundle, warn)
	return nil
}

// lockSlice is how long delete waits for the lock before it looks again which process it has to
// end. A create that is running holds the lock until its supervisor ends.
const lockSlice = 200 * time.Millisecond

// endAndLock ends the supervisor of a container that may be deleted, and locks the container.
// It checks again under the lock whether it may be deleted, because a create may have
// continued, or somebody else may have deleted the container.
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

// deleteDamaged deletes a container of which only the directory is known. What has to be
// removed is read from its supervisor, as long as that is alive.
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
		// It is opened so that it outlives the process.
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

// warn logs an error that changes nothing.
func warn(err error) { logrus.Warn(err) }

// Remove removes what a container without a supervisor has left on the host. Mounts, taps and
// the vmm have gone with the supervisor.
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
