package check

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// neededCaps are needed to mount, to enter namespaces and to make taps.
var neededCaps = []capability.Cap{capability.CAP_SYS_ADMIN, capability.CAP_NET_ADMIN}

func root() Check {
	c := Check{Name: "root", Status: OK}
	if uid := os.Geteuid(); uid != 0 {
		return c.fail(fmt.Sprintf("running as uid %d", uid), "run husk as root: rootless containers are not supported")
	}
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		return c.fail(fmt.Sprintf("read capabilities: %v", err), "mount /proc")
	}
	var missing []string
	for _, n := range neededCaps {
		if !caps.Get(capability.EFFECTIVE, n) {
			missing = append(missing, "CAP_"+strings.ToUpper(n.String()))
		}
	}
	if len(missing) > 0 {
		return c.fail("root without "+strings.Join(missing, ", "), "run husk outside of a container, or in a privileged one")
	}
	c.Detail = "running as root"
	return c
}

const cgroupRoot = "/sys/fs/cgroup"

// cgroups distinguishes v1, v2 and the hybrid by their filesystems. magicOf returns the f_type
// of statfs for a path.
func cgroups(mountPoint string, magicOf func(path string) int64) Check {
	c := Check{Name: "cgroup", Status: OK}
	v1 := hasV1(mountPoint, magicOf)
	switch {
	case magicOf(mountPoint) == unix.CGROUP2_SUPER_MAGIC:
		c.Detail = "v2"
	case v1 && magicOf(filepath.Join(mountPoint, "unified")) == unix.CGROUP2_SUPER_MAGIC:
		c.Detail = "hybrid of v1 and v2"
	case v1:
		c.Detail = "v1"
	default:
		return c.fail("no cgroup hierarchy is mounted on "+mountPoint,
			"boot with systemd, or mount one: mount -t cgroup2 none "+mountPoint)
	}
	return c
}

func hasV1(mountPoint string, magicOf func(path string) int64) bool {
	entries, err := os.ReadDir(mountPoint)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return magicOf(filepath.Join(mountPoint, e.Name())) == unix.CGROUP_SUPER_MAGIC
	})
}

// magic returns 0 if path does not exist.
func magic(path string) int64 {
	var st unix.Statfs_t
	if err := syscalls.IgnoringEINTR(func() error { return unix.Statfs(path, &st) }); err != nil {
		return 0
	}
	return st.Type
}

const tunDevice = "/dev/net/tun"

func tun(device string) Check {
	c := Check{Name: "tun", Status: OK, Detail: device + " opens"}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return c.fail(err.Error(), "modprobe tun; in a container, pass the device in")
	}
	f.Close()
	return c
}

// minHostKernel is the oldest Linux that has everything hostKernel checks.
const minHostKernel = "5.12"

// hostKernel checks the newest system calls that the supervisor needs, and the namespaces that
// it uses.
func hostKernel() Check {
	c := Check{Name: "host-kernel", Status: OK}
	const noSuchFD = 1 << 30
	var missing []string
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		unix.Close(pidfd)
	} else {
		missing = append(missing, "pidfd_open")
	}
	// Older kernels have the call without this flag and return EINVAL.
	if err := unix.CloseRange(noSuchFD, noSuchFD, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		missing = append(missing, "close_range")
	}
	if err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{}); errors.Is(err, unix.ENOSYS) {
		missing = append(missing, "mount_setattr")
	}
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		if _, err := os.Lstat("/proc/self/ns/" + ns); err != nil {
			missing = append(missing, ns+" namespaces")
		}
	}
	var name unix.Utsname
	release := "unknown release"
	if err := unix.Uname(&name); err == nil {
		release = unix.ByteSliceToString(name.Release[:])
	}
	if len(missing) > 0 {
		return c.fail(fmt.Sprintf("%s: without %s", release, strings.Join(missing, ", ")), "boot Linux "+minHostKernel+" or later, Debian 12's for one")
	}
	c.Detail = release
	return c
}

// Space that husk needs. An unpacked kernel of a distribution has about 60 MiB and an initramfs
// 20 MiB, and a new pair is made before an old one is removed. A container's state is a few
// small files.
const (
	cacheMiB = 192
	stateMiB = 1
)

// directory checks whether husk could make or use a directory, and does not make it. With
// private it fails if anybody else may write there, because husk boots kernels from its cache.
func directory(name, path string, needMiB uint64, private bool) Check {
	c := Check{Name: name, Status: OK}
	path, err := filepath.Abs(path)
	if err != nil {
		return c.fail(err.Error(), "change to a directory that exists")
	}
	existing, info, err := nearest(path)
	advice := "make it writable, or choose another directory"
	switch {
	case err != nil:
		return c.fail(err.Error(), advice)
	case !info.IsDir():
		return c.fail(existing+" is not a directory", "remove it, or choose another directory")
	}
	if existing == path && private {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
			return c.fail(fmt.Sprintf("%s belongs to uid %d", path, st.Uid), fmt.Sprintf("chown %d %s", os.Geteuid(), path))
		}
		if info.Mode().Perm()&0o022 != 0 {
			return c.fail(fmt.Sprintf("others may write to %s (mode %04o)", path, info.Mode().Perm()), "chmod go-w "+path)
		}
	}
	if err := unix.Faccessat(unix.AT_FDCWD, existing, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return c.fail(fmt.Sprintf("%s cannot be written to: %v", existing, err), advice)
	}
	var st unix.Statfs_t
	if err := syscalls.IgnoringEINTR(func() error { return unix.Statfs(existing, &st) }); err != nil {
		return c.fail(fmt.Sprintf("statfs %s: %v", existing, err), advice)
	}
	freeMiB := st.Bavail * uint64(max(st.Bsize, 0)) >> 20
	c.Detail = fmt.Sprintf("%s, %d MiB free", path, freeMiB)
	if existing != path {
		c.Detail = fmt.Sprintf("%s, to be made, %d MiB free", path, freeMiB)
	}
	if freeMiB < needMiB {
		return c.warn(c.Detail, fmt.Sprintf("make room: husk may need %d MiB", needMiB))
	}
	return c
}

// nearest returns path, or the closest directory above it that exists.
func nearest(path string) (string, fs.FileInfo, error) {
	for {
		info, err := os.Stat(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return path, info, err
		}
		path = filepath.Dir(path)
	}
}
