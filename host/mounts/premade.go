package mounts

import (
	"fmt"
	"os"

	"github.com/huskvm/husk/host/specconv"
)

// preMake makes, in a rootfs that is about to become read-only, what the guest makes
// where it is not: runc makes it before, and the guest gets the rootfs after. A
// device gets an empty file, on which the guest binds a node. The mount points are
// there already.
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
