package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// modulesFile lists the modules to load at boot: one absolute path of an uncompressed .ko
	// per line, in dependency order. host/bootimage writes it.
	modulesFile = "/lib/modules/load"

	cgroupRoot = "/sys/fs/cgroup"
	// runDir holds the directory on which the host's share is mounted.
	runDir = "/run"
	// cgroupParent holds one cgroup for each container. The path is relative to cgroupRoot.
	cgroupParent = "/husk"
)

var kernelFilesystems = []struct {
	fstype, dir string
	flags       uintptr
	data        string
}{
	{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=755"},
	{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"tmpfs", runDir, unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=620,ptmxmode=666"},
	{"cgroup2", cgroupRoot, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
}

func mountKernelFilesystems() error {
	for _, fs := range kernelFilesystems {
		if err := os.MkdirAll(fs.dir, 0o755); err != nil {
			return fmt.Errorf("mount %s: %w", fs.fstype, err)
		}
		err := unix.Mount(fs.fstype, fs.dir, fs.fstype, fs.flags, fs.data)
		// EBUSY: the kernel has mounted devtmpfs itself (CONFIG_DEVTMPFS_MOUNT).
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s on %s: %w", fs.fstype, fs.dir, err)
		}
	}
	return enableControllers(cgroupRoot)
}

// enableControllers enables all available controllers for child cgroups, one at a time, so that
// one that cannot be enabled does not prevent the others. A limit that needs it fails later
// with an error of its own.
func enableControllers(dir string) error {
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	for _, c := range strings.Fields(string(controllers)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
	return nil
}

// openConsole makes the console this process's stdout and stderr. If no console existed when
// the kernel started PID 1, the kernel opened none, and Go's runtime put /dev/null there.
func openConsole() {
	fd, err := unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // without a console nobody can be told
	}
	for _, std := range []int{1, 2} {
		_ = unix.Dup3(fd, std, 0)
	}
	_ = unix.Close(fd)
}

// loadModules loads the modules that a file lists. It tries every one and joins the errors.
// Whether a missing module matters shows later, when the channel is opened or the share is
// mounted.
func loadModules(list string) error {
	b, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil // nothing to load: the kernel has everything built in
	}
	if err != nil {
		return fmt.Errorf("read list of modules: %w", err)
	}
	var errs []error
	for path := range strings.FieldsSeq(string(b)) {
		if err := loadModule(path); err != nil {
			errs = append(errs, fmt.Errorf("load module %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if strings.HasSuffix(path, packedModule) {
		err = initPacked(f)
	} else {
		err = unix.FinitModule(int(f.Fd()), "", 0)
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
