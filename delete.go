package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/hooks"
	"github.com/huskvm/husk/network"
	"github.com/huskvm/husk/state"
)

var deleteCommand = &cli.Command{
	Name:         "delete",
	Usage:        "delete what is left of a container",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill the container first if it still runs"},
	},
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		return destroy(c, c.Args().First(), c.Bool("force"))
	},
}

// deleteTimeout bounds the wait for what has been killed to be gone and for
// another husk call to let go of the container.
const deleteTimeout = 30 * time.Second

// destroy deletes a container. With force it ends one that runs, and one that does
// not exist, or that somebody else deletes meanwhile, is no error.
func destroy(c *cli.Context, id string, force bool) error {
	// Where a create of this id was killed at its very beginning there is nothing else.
	defer state.Sweep(c.String("root"))
	err := destroyExisting(c, id, force)
	if force && errors.Is(err, state.ErrNotExist) {
		return nil
	}
	return err
}

// destroyExisting works from the container's state directory alone: no supervisor
// has to live or answer.
func destroyExisting(c *cli.Context, id string, force bool) error {
	dir, err := state.Open(c.String("root"), id)
	if err != nil {
		return err
	}
	defer dir.Close()
	container, err := dir.Load()
	if err != nil {
		return err
	}
	if err := state.Allowed(state.Delete, id, container.Status()); err != nil && !force {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, deleteTimeout)
	defer cancel()
	// Before the lock: a create that holds it fails now and lets go.
	if err := container.Supervisor.Kill(ctx); err != nil {
		return err
	}
	lock := dir.Lock
	if force {
		lock = dir.LockByForce
	}
	if err := lock(ctx); err != nil {
		return err
	}
	// Somebody else may have deleted it meanwhile.
	if container, err = dir.Load(); err != nil {
		return err
	}
	if err := removeContainer(ctx, dir, container); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	// The spec: a failing poststop hook is logged and nothing else.
	st := container.OCI(state.Stopped)
	hooks.RunAll(c.Context, hooks.Of(container.Hooks).Poststop, "poststop", st, st.Bundle, warn)
	return nil
}

// warn is for failures that change nothing.
func warn(err error) { logrus.Warn(err) }

// removeContainer removes what a container whose supervisor is gone has left on
// the host. Mounts, taps and the vmm went with the supervisor.
func removeContainer(ctx context.Context, dir *state.Dir, c *state.Container) error {
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
