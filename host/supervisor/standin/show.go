package standin

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// Show makes a copy of the mounts at this process's root the stand-in's root. at is a directory
// in the host's tree, which is still the stand-in's.
func (p *Peer) Show(at string) error {
	defer p.mounts.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("show the container's mounts: %w", os.NewSyscallError("open_tree", err))
	}
	defer unix.Close(tree)
	done := make(chan error, 1)
	go func() {
		// The goroutine is not unlocked, so the thread, which has joined the namespace, ends.
		// It is not the main thread, which never ends, because main is locked to that.
		runtime.LockOSThread()
		done <- p.enter(tree, at)
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("show the container's mounts: %w", err)
	}
	return nil
}

func (p *Peer) enter(tree int, at string) error {
	if unix.Gettid() == unix.Getpid() {
		return errors.New("on the main thread")
	}
	if err := syscalls.JoinNamespaces(int(p.mounts.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	if err := unix.Chdir(at); err != nil {
		return &os.PathError{Op: "chdir", Path: at, Err: err}
	}
	// It moves every process whose root is the old one.
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	return os.NewSyscallError("umount", unix.Unmount(".", unix.MNT_DETACH))
}
