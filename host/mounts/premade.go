package mounts

import (
	"fmt"
	"os"

	"github.com/huskvm/husk/host/specconv"
)

// preMake makes, in a rootfs that will be read-only, what the guest would make there: the guest
// gets the rootfs read-only, whereas runc makes these before it makes the rootfs read-only. For
// a device it makes an empty file, on which the guest binds a node. The mount points exist
// already.
func preMake(root *os.File, r *Request) error {
	if cwd := r.Cwd; cwd != "" {
		if err := preMakeOne(root, cwd, true, r.UserNS); err != nil {
			return fmt.Errorf("mkdir %s: %w", cwd, err)
		}
	}
	for _, d := range r.Devices {
		if err := preMakeOne(root, d.Path, false, r.UserNS); err != nil {
			return fmt.Errorf("make %s: %w", d.Path, err)
		}
	}
	return nil
}

func preMakeOne(root *os.File, name string, dir bool, ids *specconv.IDMaps) error {
	f, _, err := mountPoint(root, name, dir, ids)
	if err != nil {
		return err
	}
	return f.Close()
}
