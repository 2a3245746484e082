package qemu

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// confine leaves the vmm with nothing of the host's files but the share, which
// becomes its root. QEMU has everything open by the time it answers QMP, and its
// 9p server goes by descriptors. What this is for: a guest that has taken QEMU
// over finds only what it was given anyway; and the vmm's copy of the host's
// mounts would keep each of them busy for as long as the VM lives.
//
// hostDir is the share's directory. One that is no mount point, or none (""),
// holds no mounts to keep: the vmm is given an empty root then.
func (p *process) confine(hostDir string) error {
	done := make(chan error)
	go func() {
		// The thread ends with its goroutine: it is left in the vmm's namespace. The
		// program keeps its main goroutine on the main thread, so it is not that one.
		runtime.LockOSThread()
		done <- enterAndPivot(p.pidfd, hostDir)
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("confine vmm to its share: %w", err)
	}
	return nil
}

func enterAndPivot(pidfd int, hostDir string) error {
	// A thread may change its mount namespace only if it shares no root and
	// working directory.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(pidfd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	var err error = unix.EINVAL
	if hostDir != "" {
		err = pivot(hostDir)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		// Any directory will do to mount the empty root on.
		const anywhere = "/proc"
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("leave the host's mounts: %w", err)
		}
		if err := unix.Mount("husk-vmm", anywhere, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k"); err != nil {
			return fmt.Errorf("mount an empty root: %w", err)
		}
		err = pivot(anywhere)
	}
	return err
}

// pivot makes dir the root of every process in this mount namespace that has the
// old one, and lets go of all else.
func pivot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host's mounts: %w", err)
	}
	return nil
}
