// Package detached opens directories of the host so that their holder can reach nothing outside
// of them. From an ordinary descriptor of a directory ".." leads up to the host's root, even if
// the holder's own root is another directory.
package detached

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Open returns hostDir as the root of a detached mount. It can be used by its descriptor
// (openat(2)) and by its path in /proc/self/fd. What is mounted below hostDir is not visible in
// it. Open needs CAP_SYS_ADMIN.
func Open(hostDir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, hostDir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree(OPEN_TREE_CLONE)", Path: hostDir, Err: err}
	}
	return os.NewFile(uintptr(fd), hostDir), nil
}

// OpenRoot is Open for code that works with names in the directory.
func OpenRoot(hostDir string) (*os.Root, error) {
	f, err := Open(hostDir)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the os.Root has a descriptor of its own
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// OpenProgram returns a directory that contains only a program, by this name: the one that this
// process runs. stage is a directory to mount it on for a moment. The mount namespace must not
// propagate mounts to others.
func OpenProgram(stage, name string) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("keep this program: %w", err)
		}
	}()
	if err := unix.Mount("husk-program", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k,mode=700"); err != nil {
		return nil, os.NewSyscallError("mount", err)
	}
	defer func() {
		if uerr := unix.Unmount(stage, unix.MNT_DETACH); err == nil {
			err = os.NewSyscallError("umount", uerr)
		}
	}()
	at := stage + "/" + name
	if err := os.WriteFile(at, nil, 0o500); err != nil {
		return nil, err
	}
	if err := bindSelf(at); err != nil {
		return nil, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, stage, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// bindSelf finds the program by its path, because /proc/self/exe is a file of the mount
// namespace in which this process was executed.
func bindSelf(at string) error {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := unix.Mount(path, at, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: path, Err: err}
	}
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return err
	}
	bound, err := os.Stat(at)
	if err != nil {
		return err
	}
	if !os.SameFile(own, bound) {
		return fmt.Errorf("%s is another program by now", path)
	}
	return nil
}
