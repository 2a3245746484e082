package mounts

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
)

// IDMaps returns the user namespace with the mappings of a share; nil if it has none.
type IDMaps func(specconv.Share) *os.File

// bind binds a share, with mapped ids if it has mappings.
func (ids IDMaps) bind(s specconv.Share, hostPath string) error {
	if s.IDMap == nil {
		flags := uintptr(unix.MS_BIND)
		if s.Recursive {
			flags |= unix.MS_REC
		}
		return unix.Mount(s.HostPath, hostPath, "", flags, "")
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if s.Recursive {
		flags |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, s.HostPath, flags)
	if err != nil {
		return &os.PathError{Op: "open_tree(OPEN_TREE_CLONE)", Path: s.HostPath, Err: err}
	}
	defer unix.Close(tree)
	if err := mapIDs(tree, s, ids(s)); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, hostPath, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	return nil
}

// mapIDs uses runc's words.
func mapIDs(tree int, s specconv.Share, userNS *os.File) error {
	if userNS == nil {
		return errors.New("no user namespace with the mappings was passed")
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if s.IDMap.Recursive {
		flags |= unix.AT_RECURSIVE
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userNS.Fd())}
	err := unix.MountSetattr(tree, "", flags, attr)
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("failed to set MOUNT_ATTR_IDMAP on %s: %w (maybe the filesystem used doesn't support idmap mounts on this kernel?)", s.HostPath, err)
	case err != nil:
		return fmt.Errorf("failed to set MOUNT_ATTR_IDMAP on %s: %w", s.HostPath, err)
	}
	return nil
}
