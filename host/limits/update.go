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

// Update changes the limits of a container on both sides, or on neither. The host's are changed
// first, because they can easily be restored. The supervisor saves the container's state with
// the limits.
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
	// Warnings are logged only after success, because podman does not understand a log with
	// more than the one line of an error.
	for _, w := range change.Dropped {
		logrus.Warn(w)
	}
	return nil
}

// guestLacks says whether a field limits something that no guest has. The kubelet sends such
// limits with every update. An update must not ignore any other limit.
func guestLacks(field string) bool {
	return field == "linux.resources.hugepageLimits" || field == "linux.resources.rdma"
}
