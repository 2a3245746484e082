package libcontainer

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls that golang.org/x/sys does not have, or makes on all threads. The init stage
// needs them on its own thread, which becomes the container's process.

func rawCall(nr, a1, a2, a3 uintptr) error {
	if _, _, errno := unix.RawSyscall(nr, a1, a2, a3); errno != 0 {
		return errno
	}
	return nil
}

func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return -1, os.NewSyscallError("bpf", errno)
	}
	return int(fd), nil
}

func rtSigaction(sig uintptr, act, old *kernelSigaction) error {
	const sigsetBytes = 8
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)), sigsetBytes, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func setgroups(gids []uint32) error {
	return rawCall(unix.SYS_SETGROUPS, uintptr(len(gids)), uintptr(unsafe.Pointer(unsafe.SliceData(gids))), 0)
}

func setresgid(gid uint32) error {
	return rawCall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
}

func setresuid(uid uint32) error {
	return rawCall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
}

func ioprioSet(value int) error {
	const whoProcess = 1
	return rawCall(unix.SYS_IOPRIO_SET, whoProcess, 0, uintptr(value))
}

func setPersonality(value uintptr) error {
	return rawCall(unix.SYS_PERSONALITY, value, 0, 0)
}

// setattr changes the mount that fd is open on and, with recursive, the mounts below it.
func setattr(fd int, attr unix.MountAttr, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &attr)
}

// cloneTree returns a detached copy of the mount that fd is open on.
func cloneTree(fd int, recursive bool) (int, error) {
	flags := uint(unix.AT_EMPTY_PATH | unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(fd, "", flags)
}

// attachTree mounts a detached mount on the file that fd is open on.
func attachTree(tree, fd int) error {
	return unix.MoveMount(tree, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// mountOn mounts a filesystem on the directory that fd is open on. mount(2) takes only a path,
// so mountOn changes the working directory to fd and mounts on ".", which no link can redirect.
func mountOn(fd int, source, fstype string, flags uintptr, data string) error {
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	return unix.Mount(source, ".", fstype, flags, data)
}

// ptyPeer opens the slave of a pty without using its path.
func ptyPeer(master int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
