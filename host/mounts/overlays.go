package mounts

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
)

// mountOverlays mounts each overlay filesystem among the shares once, because the share and the
// shadow both bind it, and the result of two mounts of one upper directory is undefined. They
// are mounted below stage, on which something else may be mounted later. Until closeAll is
// called the shares' paths lead to them. They end with this mount namespace.
func mountOverlays(stage string, shares []specconv.Share) (closeAll func(), err error) {
	var opened []int
	closeAll = func() {
		for _, fd := range opened {
			unix.Close(fd)
		}
	}
	for i, s := range shares {
		if s.Overlay == "" {
			continue
		}
		if len(opened) == 0 {
			if err := unix.Mount("husk-overlays", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=1m,mode=700"); err != nil {
				return closeAll, fmt.Errorf("mount place for overlays: %w", err)
			}
		}
		fd, err := mountOverlay(filepath.Join(stage, strconv.Itoa(i)), s.Overlay)
		if err != nil {
			closeAll()
			return func() {}, fmt.Errorf("error during container init: error mounting %q to rootfs at %q: %w", s.HostPath, s.Destination, err)
		}
		opened = append(opened, fd)
		shares[i].HostPath = "/proc/self/fd/" + strconv.Itoa(fd)
	}
	return closeAll, nil
}

// mountOverlay returns a descriptor of the mount's root.
func mountOverlay(dir, data string) (int, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return -1, err
	}
	if err := unix.Mount("overlay", dir, "overlay", 0, data); err != nil {
		return -1, fmt.Errorf("mount overlay, data: %s: %w", data, err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}
