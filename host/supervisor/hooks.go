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
// are any, and returns what has to be called before this process leaves the
// host's tree.
func (s *supervisor) prepareHooks() (finish func() error, err error) {
	if !hooks.AtCreate(s.container.Hooks) {
		return func() error { return nil }, nil
	}
	proceed, err := s.parent.Prepared()
	return func() error { return s.finishHooks(proceed) }, err
}

// finishHooks waits until the hooks of the runtime namespace have run, and runs
// those of createContainer. These are programs of the host and need its tree,
// which is still this process's; its namespaces are the container's already.
func (s *supervisor) finishHooks(proceed <-chan struct{}) error {
	ctx, cancel := s.whileWanted()
	defer cancel()
	select {
	case <-proceed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.timings.Lap("wait for hooks")
	st := s.container.OCI(state.Creating)
	st.Pid = os.Getpid() // as the hooks see it, which are in the same pid namespace
	if s.standIn != nil {
		st.Pid = s.boot.StandInPID
	}
	err := hooks.Run(ctx, hooks.Of(s.container.Hooks).CreateContainer, "createContainer", st, s.container.Rootfs)
	if err != nil {
		return fmt.Errorf("error during container init: %w", err)
	}
	s.timings.Lap("hooks")
	// What they have mounted is to stay where it has spread when the host's tree
	// is let go of, with the rootfs in it.
	if err := mounts.LeaveHost(); err != nil {
		return err
	}
	return s.machine.SealShare()
}
