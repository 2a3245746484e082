package qemu

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// confine leaves the vmm with nothing of the host's files but the share, before the
// guest runs. QEMU has everything open by the time it answers QMP, and its 9p server
// goes by descriptors. What this is for: a guest that has taken QEMU over finds only what
// it was given anyway; and the vmm's copy of the host's mounts would keep each of
// them busy for as long as the VM lives.
//
// hostDir is the share's directory, "" for none.
func (p *process) confine(hostDir string) error {
	done := make(chan error)
	go func() {
		// The thread ends with its goroutine: it is left in the vmm's namespace. The
		// program keeps its main goroutine on the main thread, so it is not that one.
		runtime.LockOSThread()
		done <- enterAndPivot(p.pidfd, hostDir)
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("confine vmm: %w", err)
	}
	return nil
}

// newRoot is where the vmm's root is built: a directory that is there on every
// host and that no share lies below. Its name in the new root is the same, for
// QEMU's 9p server changes modes and attributes through /proc/self/fd.
const newRoot = "/proc"

func enterAndPivot(pidfd int, hostDir string) error {
	// A thread may change its mount namespace only if it shares no root and
	// working directory.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(pidfd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	// The vmm's own, of its pid namespace: see restrictions.
	proc, err := unix.OpenTree(unix.AT_FDCWD, "/proc", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("keep /proc: %w", err)
	}
	defer unix.Close(proc)
	const harmless = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("husk-vmm", newRoot, "tmpfs", harmless, "size=64k,mode=755"); err != nil {
		return fmt.Errorf("mount a root: %w", err)
	}
	for _, dir := range []string{newRoot + "/proc", newRoot + "/share"} {
		if err := unix.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make a root: %w", err)
		}
	}
	if err := unix.MoveMount(proc, "", unix.AT_FDCWD, newRoot+"/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if hostDir != "" {
		// Moved, not bound: the 9p server holds this very mount and finds those below
		// it only while they hang together.
		if err := unix.Mount(hostDir, newRoot+"/share", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("keep the share: %w", err)
		}
	}
	if err := unix.Mount("", newRoot, "", unix.MS_REMOUNT|unix.MS_RDONLY|harmless, ""); err != nil {
		return fmt.Errorf("seal the root: %w", err)
	}
	return pivot(newRoot)
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
