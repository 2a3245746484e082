package mounts

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
)

// populateShare builds the tree that the guest gets: a small tmpfs with one bind mount for each
// share and nothing else of the host. A file is bound alone, so that the files beside it cannot
// be seen. Read-only is enforced here too, because the guest's kernel is not trusted.
//
// All mounts are in this mount namespace only and end with it.
//
// What the host mounts later below a shared directory does not appear in the share: it would be
// neither read-only nor nodev nor id-mapped, and the vmm could reach it. Only the rootfs, which
// is the first share, gets what hooks of create mount below it: see spreadRootfs.
func populateShare(r *Request) error {
	hostDir := r.ShareDir
	if err := unix.Mount("husk-share", hostDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=1m,mode=755"); err != nil {
		return fmt.Errorf("mount share: %w", err)
	}
	for i, s := range r.Shares {
		propagation := uintptr(unix.MS_PRIVATE)
		if i == 0 && r.Hooks {
			propagation = unix.MS_SLAVE
		}
		if err := bindShare(filepath.Join(hostDir, s.Name), s, r.IDMaps, propagation); err != nil {
			return fmt.Errorf("share %s for %s: %w", s.HostPath, s.Destination, err)
		}
	}
	// Otherwise the guest could fill the host's memory by writing beside the binds.
	if err := setReadOnly(hostDir, false); err != nil {
		return fmt.Errorf("seal share: %w", err)
	}
	return nil
}

func bindShare(hostPath string, s specconv.Share, ids IDMaps, propagation uintptr) error {
	if err := os.MkdirAll(filepath.Dir(hostPath), 0o755); err != nil {
		return err
	}
	if err := makeMountPoint(hostPath, s.IsDir); err != nil {
		return err
	}
	if err := ids.bind(s, hostPath); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Mount("", hostPath, "", propagation|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("leave the source's mounts: %w", err)
	}
	if s.ReadOnly {
		return setReadOnly(hostPath, s.Recursive)
	}
	return nil
}

// makeMountPoint makes a directory, or an empty file, in a tree of husk's own.
func makeMountPoint(path string, dir bool) error {
	if dir {
		return os.Mkdir(path, 0o755)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// setReadOnly makes a mount read-only and keeps its other flags.
func setReadOnly(path string, recursive bool) error {
	if err := setReadOnlyAt(unix.AT_FDCWD, path, recursive); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

// setReadOnlyAt takes the mount by a directory and a path, as openat(2) takes a file. With an
// empty path it is the mount whose root dirfd is.
func setReadOnlyAt(dirfd int, path string, recursive bool) error {
	flags := uint(unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(dirfd, path, flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}
