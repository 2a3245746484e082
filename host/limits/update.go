package limits

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
)

// Update changes the limits of a container on both sides, or on none: the host's first,
// as what stood there is easily put back. The container's state is the supervisor's
// to save, with the limits.
func Update(ctx context.Context, supervisor *control.Connection, asked *specs.LinuxResources) error {
	locking, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	if err := supervisor.Dir.Lock(locking); err != nil {
		return err
	}
	defer supervisor.Dir.Unlock()
	container, err := supervisor.Dir.Load()
	if err != nil {
		return err
	}
	group := container.Cgroup
	if group == nil {
		group = &cgroup.Group{}
	}
	host, guest, err := specconv.Resources(asked, group.Limits)
	if err != nil {
		return err
	}
	change := group.Change(host, container.Saved == state.Created)
	for _, d := range change.Dropped {
		if !guestLacks(d.Field) {
			return specconv.NotUpdated(d)
		}
	}
	req := &control.UpdateRequest{}
	if req.Resources, err = json.Marshal(guest); err != nil {
		return fmt.Errorf("encode resources: %w", err)
	}
	if req.Limits, err = json.Marshal(change.Limits); err != nil {
		return fmt.Errorf("encode limits: %w", err)
	}
	if err := change.Apply(); err != nil {
		return err
	}
	if _, err := supervisor.Update(ctx, req); err != nil {
		return errors.Join(control.Error(err), change.Undo())
	}
	// Only now: a log that holds more than the one line of an error is not
	// understood by podman.
	for _, w := range change.Dropped {
		logrus.Warn(w)
	}
	return nil
}

// guestLacks says whether a field is a limit on what no guest has. The kubelet sends such
// limits with every update; of all others an update must not leave one undone.
func guestLacks(field string) bool {
	return field == "linux.resources.hugepageLimits" || field == "linux.resources.rdma"
}
