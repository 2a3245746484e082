package qemu

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// confine takes all files of the host away from the vmm, except the share, before the guest
// runs. QEMU has opened everything by the time it answers on QMP, and its 9p server works with
// descriptors. So a guest that takes QEMU over finds only what it had anyway. And without
// confine the vmm's copy of the host's mounts would keep every one of them busy as long as the
// VM lives.
//
// hostDir is the directory of the share, "" if there is none.
func (p *process) confine(hostDir string) error {
	if err := p.inMounts(func() error { return keepShare(hostDir) }); err != nil {
		return fmt.Errorf("confine vmm: %w", err)
	}
	return nil
}

// sealShare restricts what hooks have mounted below the share since the vmm was started. Such a
// mount has propagated with the flags that the hook gave it. After sealShare no mount
// propagates any more. hostDir is as for confine, which was called before.
func (p *process) sealShare(hostDir string) error {
	if hostDir == "" {
		return nil
	}
	err := p.inMounts(func() error {
		attr := harmlessMounts
		attr.Propagation = unix.MS_PRIVATE
		return unix.MountSetattr(unix.AT_FDCWD, shareInRoot, unix.AT_RECURSIVE, &attr)
	})
	if err != nil {
		return fmt.Errorf("make what is mounted in the share nosuid, nodev, noexec: %w", err)
	}
	return nil
}

// inMounts runs f in the vmm's mount namespace.
func (p *process) inMounts(f func() error) error {
	done := make(chan error)
	go func() {
		// The thread stays in the vmm's namespace, so it ends with its goroutine. It is not the
		// main thread, because the program keeps its main goroutine locked there.
		runtime.LockOSThread()
		err := p.enterMounts()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// enterMounts moves this thread into the vmm's mount namespace.
func (p *process) enterMounts() error {
	pidfd, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var joined error
	if err := pidfd.Control(func(fd uintptr) { joined = syscalls.JoinNamespaces(int(fd), unix.CLONE_NEWNS) }); err != nil {
		return err
	}
	return joined
}

// newRoot is the directory on which the vmm's root is built. It exists on every host and no
// share is below it. The new root has a proc directory too, because QEMU's 9p server changes
// modes and attributes through /proc/self/fd.
const newRoot = "/proc"

// shareInRoot is the path of the share in the new root.
const shareInRoot = "/share"

// keepShare makes a new root, with the share and /proc in it, the root of this mount namespace.
func keepShare(hostDir string) error {
	// Below this mount is another one, of the vmm's pid namespace and with processes only,
	// which stays: see restricting.mounts.
	if err := unix.Unmount("/proc", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the start's /proc: %w", err)
	}
	proc, err := unix.OpenTree(unix.AT_FDCWD, "/proc", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("keep /proc: %w", err)
	}
	defer unix.Close(proc)
	const harmless = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("husk-vmm", newRoot, "tmpfs", harmless, "size=64k,mode=755"); err != nil {
		return fmt.Errorf("mount a root: %w", err)
	}
	for _, dir := range []string{newRoot + "/proc", newRoot + shareInRoot} {
		if err := unix.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make a root: %w", err)
		}
	}
	if err := unix.MoveMount(proc, "", unix.AT_FDCWD, newRoot+"/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if hostDir != "" {
		// The share is moved and not bound, because the 9p server has this mount open, and
		// finds the mounts below it only as long as they stay attached to it.
		if err := unix.Mount(hostDir, newRoot+shareInRoot, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("keep the share: %w", err)
		}
	}
	if err := unix.Mount("", newRoot, "", unix.MS_REMOUNT|unix.MS_RDONLY|harmless, ""); err != nil {
		return fmt.Errorf("seal the root: %w", err)
	}
	return pivot(newRoot)
}

// pivot makes dir the root of every process of this mount namespace that uses the old root, and
// unmounts everything else.
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
