package limits

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

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
	change := group.Plan(host, container.Saved == state.Created)
	dropped, refused := sortDropped(change.Dropped)
	if refused != "" {
		return specconv.NotUpdated(refused)
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
	for _, w := range dropped {
		logrus.Warn(w)
	}
	return nil
}

// sortDropped tells what update must not leave undone from limits on what a
// guest does not have anyway, which kubelet sends with every update.
func sortDropped(all []string) (dropped []string, refused string) {
	for _, w := range all {
		if strings.HasPrefix(w, "linux.resources.hugepageLimits") || strings.HasPrefix(w, "linux.resources.rdma") {
			dropped = append(dropped, w)
		} else if refused == "" {
			refused = w
		}
	}
	return dropped, refused
}
