package specconv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Env is what Convert knows of the world beside the spec.
type Env struct {
	// ID is the container's. It must be one path element: the agent names the
	// container's cgroup in the guest by it.
	ID string
	// Bundle is the absolute host path of the bundle; relative paths of the
	// spec start there.
	Bundle string
	// MemoryMiB is the host's RAM and CPUs how many it has online. A VM is not
	// made larger than its host, except by annotation: the guest kernel spends
	// 1/64 of whatever RAM it is shown on page structures. 0: unknown, no bound.
	MemoryMiB int
	CPUs      int
	// Rlimits are the limits of the caller's, which the container's process has
	// where the spec sets none.
	Rlimits []specs.POSIXRlimit
	// Host answers questions about paths and devices of the host; nil is this
	// machine itself.
	Host Host
}

// Host is what Convert asks about the host's files. It is an interface so that
// plans can be tested without them.
type Host interface {
	// Stat follows symbolic links; its error prints as "stat PATH: reason".
	Stat(path string) (File, error)
	// RealPath is path with all symbolic links resolved.
	RealPath(path string) (string, error)
	// Filesystem tells of the filesystem that path is on.
	Filesystem(path string) (Filesystem, error)
	// UserNamespace returns the mappings of a user namespace, as seen from this one.
	UserNamespace(path string) (*IDMaps, error)
	// HasDevice says whether the host's kernel has a driver for a device
	// number; kind is "b" or "c".
	HasDevice(kind string, major, minor int64) bool
}

// File is the part of stat(2) that decides how a bind mount is exported.
type File struct {
	Type         fs.FileMode // the type bits of fs.FileMode
	Major, Minor uint32      // of a device node
}

// Filesystem is the part of statfs(2) needed.
type Filesystem struct {
	Tmpfs     bool
	SizeBytes uint64 // 0: unlimited
}

// thisHost is the Host that this process runs on.
type thisHost struct{}

func (thisHost) Stat(path string) (File, error) {
	var st unix.Stat_t
	if err := retryEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
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
	if err := retryEINTR(func() error { return unix.Statfs(path, &st) }); err != nil {
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
	// Where sysfs can't be asked the answer is yes: it refuses, which is safe.
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}

func retryEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
