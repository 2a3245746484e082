package specconv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// Env is what Convert needs to know besides the spec.
type Env struct {
	// ID is the container's id. It must be one path element, because the agent uses it as the
	// name of a cgroup.
	ID string
	// Bundle is the absolute path of the bundle on the host. Relative paths of the spec start
	// there.
	Bundle string
	// MemoryMiB is the host's RAM and CPUs the number of its online CPUs. Except by annotation
	// a VM is not larger than its host: a guest's kernel uses 1/64 of its RAM for page
	// structures. 0: unknown, no bound.
	MemoryMiB int
	CPUs      int
	// Rlimits are the limits of the caller. The container's process has them where the spec
	// sets none.
	Rlimits []specs.POSIXRlimit
	// Host answers questions about paths and devices of the host; nil means this machine.
	Host Host
}

// Host is what Convert asks about the host's files. It is an interface so that tests need no
// such files.
type Host interface {
	// Stat follows symbolic links. Its error prints as "stat PATH: reason".
	Stat(path string) (File, error)
	// RealPath returns path with all symbolic links resolved.
	RealPath(path string) (string, error)
	// Filesystem returns information about the filesystem that path is on.
	Filesystem(path string) (Filesystem, error)
	// UserNamespace returns the mappings of a user namespace, as seen from the caller's.
	UserNamespace(path string) (*IDMaps, error)
	// HasDevice says whether the host's kernel has a driver for a device number. kind is "b" or
	// "c".
	HasDevice(kind string, major, minor int64) bool
}

// File is the part of stat(2) that Convert needs.
type File struct {
	Type         fs.FileMode // type bits only
	Major, Minor uint32      // of a device node
}

// Filesystem is the part of statfs(2) that Convert needs.
type Filesystem struct {
	Tmpfs     bool
	SizeBytes uint64 // 0: no limit
}

// thisHost is the Host for this machine.
type thisHost struct{}

func (thisHost) Stat(path string) (File, error) {
	var st unix.Stat_t
	if err := syscalls.IgnoringEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return File{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	f := File{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		f.Type = fs.ModeDir
	case unix.S_IFCHR:
		f.Type = fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		f.Type = fs.ModeDevice
	case unix.S_IFIFO:
		f.Type = fs.ModeNamedPipe
	case unix.S_IFSOCK:
		f.Type = fs.ModeSocket
	default:
		f.Type = fs.ModeIrregular
	}
	return f, nil
}

func (thisHost) RealPath(path string) (string, error) { return filepath.EvalSymlinks(path) }

func (thisHost) Filesystem(path string) (Filesystem, error) {
	var st unix.Statfs_t
	if err := syscalls.IgnoringEINTR(func() error { return unix.Statfs(path, &st) }); err != nil {
		return Filesystem{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return Filesystem{
		Tmpfs:     st.Type == unix.TMPFS_MAGIC,
		SizeBytes: st.Blocks * uint64(max(st.Bsize, 0)),
	}, nil
}

func (thisHost) HasDevice(kind string, major, minor int64) bool {
	dir := "char"
	if kind == "b" {
		dir = "block"
	}
	_, err := os.Stat(fmt.Sprintf("/sys/dev/%s/%d:%d", dir, major, minor))
	// If sysfs cannot be read, the answer is yes: then the device is refused, which is safe.
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}
