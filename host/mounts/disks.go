package mounts

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
)

// Disk is an open block device of the host for the guest.
type Disk struct {
	File     *os.File // open for reading and, unless ReadOnly, for writing
	ReadOnly bool
	Serial   string // by which the guest finds the disk
	// LogicalBlock and PhysicalBlock are the smallest and the best unit of access to the
	// device, in bytes. Both are powers of two, at least 512.
	LogicalBlock, PhysicalBlock int
}

// OpenDisks opens the host's block devices for the guest. The spec names them by number only,
// because its path is that in the container. So it opens nodes that it makes itself, on a
// detached filesystem.
func OpenDisks(disks []specconv.Disk) (_ []Disk, err error) {
	if len(disks) == 0 {
		return nil, nil
	}
	dir, err := nodeDir()
	if err != nil {
		return nil, fmt.Errorf("open block devices: %w", err)
	}
	defer dir.Close()
	var open []Disk
	defer func() {
		if err != nil {
			CloseDisks(open)
		}
	}()
	for i, d := range disks {
		f, readOnly, err := openDisk(dir, i, d)
		if err != nil {
			return nil, fmt.Errorf("%s: open block device %d:%d: %w", d.Field, d.Major, d.Minor, err)
		}
		disk := Disk{File: f, ReadOnly: readOnly, Serial: specconv.Serial(i)}
		open = append(open, disk)
		if err := askBlocks(&open[i]); err != nil {
			return nil, fmt.Errorf("%s: block device %d:%d: %w", d.Field, d.Major, d.Minor, err)
		}
	}
	// Who has the descriptors, a vmm that its guest has taken over, can open through
	// /proc/self/fd what is open for reading anew for writing, unless the mount that the
	// node is on has no devices.
	if err := unix.MountSetattr(int(dir.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV}); err != nil {
		return nil, fmt.Errorf("seal block devices: %w", os.NewSyscallError("mount_setattr", err))
	}
	return open, nil
}

// CloseDisks closes the files of OpenDisks. Call it when the vmm has its own descriptors.
func CloseDisks(disks []Disk) {
	for _, d := range disks {
		// Nothing was written through it.
		d.File.Close()
	}
}

// nodeDir returns the root of a new, detached tmpfs.
func nodeDir() (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "device nodes"), nil
}

// openDisk opens a device. If the device can only be read, it opens it for reading, whatever
// the container may do: on the host a write would fail too. O_DIRECT is needed because QEMU
// uses it, and since 9.1 accepts no descriptor without it.
func openDisk(dir *os.File, i int, d specconv.Disk) (_ *os.File, readOnly bool, err error) {
	name, number := specconv.Serial(i), unix.Mkdev(d.Major, d.Minor)
	if err := unix.Mknodat(int(dir.Fd()), name, unix.S_IFBLK|0o600, int(number)); err != nil {
		return nil, false, os.NewSyscallError("mknod", err)
	}
	fd, readOnly := -1, d.ReadOnly
	if !readOnly {
		fd, err = unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		readOnly = errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EPERM)
	}
	if readOnly {
		fd, err = unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, false, err
	}
	return os.NewFile(uintptr(fd), name), readOnly, nil
}

// askBlocks asks a device for its block sizes, and whether it was set read-only, which does not
// keep root from opening it for writing.
func askBlocks(d *Disk) error {
	fd := int(d.File.Fd())
	logical, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
	if err != nil {
		return os.NewSyscallError("ioctl BLKSSZGET", err)
	}
	physical, err := unix.IoctlGetUint32(fd, unix.BLKPBSZGET)
	if err != nil {
		return os.NewSyscallError("ioctl BLKPBSZGET", err)
	}
	protected, err := unix.IoctlGetInt(fd, unix.BLKROGET)
	if err != nil {
		return os.NewSyscallError("ioctl BLKROGET", err)
	}
	d.LogicalBlock, d.PhysicalBlock = logical, int(physical)
	d.ReadOnly = d.ReadOnly || protected != 0
	return nil
}
