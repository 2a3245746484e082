package supervisor

import (
	"context"
	"fmt"
	"os"

	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/mounts"
	"github.com/huskvm/husk/host/state"
)

// prepareHooks tells the cli that its hooks find what they look for, if there
// are any.
func (c *creation) prepareHooks() (err error) {
	if !c.hasHooks() {
		return nil
	}
	c.proceed, err = c.parent.Prepared()
	return err
}

// hasHooks says whether hooks of the host are to run before the container is created.
func (c *creation) hasHooks() bool { return hooks.AtCreate(c.s.boot.Container.Hooks) }

// finishHooks waits until the hooks of the runtime namespace have run, and runs those of
// createContainer. These are programs of the host and need the host's tree, which this process
// still has, while its namespaces are the container's already.
func (c *creation) finishHooks() error {
	if !c.hasHooks() {
		return nil
	}
	container := c.s.boot.Container
	ctx, cancel := c.whileWanted()
	defer cancel()
	select {
	case <-c.proceed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	c.timings.Lap("wait for hooks")
	st := container.OCI(state.Creating)
	st.Pid = os.Getpid() // the hooks are in this pid namespace
	if c.s.standIn != nil {
		st.Pid = c.s.boot.StandInPID
	}
	err := hooks.Run(ctx, hooks.Of(container.Hooks).CreateContainer, "createContainer", st, container.Rootfs)
	if err != nil {
		return fmt.Errorf("error during container init: %w", err)
	}
	c.timings.Lap("hooks")
	// What they have mounted in the rootfs must stay where it has spread to when the host's
	// tree, which contains the rootfs, is unmounted.
	if err := mounts.LeaveHost(); err != nil {
		return err
	}
	return c.s.machine.SealShare()
}
