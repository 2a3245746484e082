package libcontainer

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// setUpRootfs makes the container's root filesystem this process's root. The mount namespace is
// new, so nobody outside sees these mounts, unless the spec asks for shared propagation.
func (s *stage) setUpRootfs() error {
	cfg := s.cfg
	if err := s.bindRootfs(); err != nil {
		return err
	}
	var late []int // tmpfs mounts to be made read-only when they have been filled
	for i := range cfg.Mounts {
		m := &cfg.Mounts[i]
		fd, err := s.mount(m)
		if err != nil {
			return fmt.Errorf("error mounting %q to rootfs at %q: %w", m.Source, m.Destination, err)
		}
		if fd >= 0 {
			late = append(late, fd)
		}
	}
	if cfg.Root.OwnDev {
		if err := s.setUpDev(); err != nil {
			return err
		}
	}
	if err := runHooks("createContainer", cfg.Hooks.CreateContainer, cfg.State, nil); err != nil {
		return err
	}
	if err := s.enterRootfs(); err != nil {
		return err
	}
	if cfg.Process.Terminal {
		if err := s.openConsole(); err != nil {
			return err
		}
	}
	for _, fd := range late {
		if err := setattr(fd, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, false); err != nil {
			return fmt.Errorf("make tmpfs read-only: %w", err)
		}
	}
	// The root is the container's now, so no path leads out of it. runc makes this directory
	// too.
	if cfg.Process.Cwd != "" {
		if err := os.MkdirAll(cfg.Process.Cwd, 0o755); err != nil {
			return err
		}
	}
	if cfg.Root.Propagation != 0 {
		if err := unix.Mount("", "/", "", cfg.Root.Propagation, ""); err != nil {
			return fmt.Errorf("set propagation of rootfs: %w", err)
		}
	}
	if cfg.Root.Readonly {
		if err := setattr(s.root.fd, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, false); err != nil {
			return fmt.Errorf("make rootfs read-only: %w", err)
		}
	}
	for _, name := range cfg.Readonly {
		if err := s.makeReadonly(name); err != nil {
			return fmt.Errorf("make %q read-only: %w", name, err)
		}
	}
	return s.maskAll(cfg.Masked)
}

// bindRootfs makes the rootfs a mount of its own, because pivot_root needs one, and opens it as
// the stage's root.
func (s *stage) bindRootfs() error {
	cfg := s.cfg.Root
	propagation := uintptr(unix.MS_SLAVE | unix.MS_REC)
	switch {
	case cfg.Propagation&unix.MS_UNBINDABLE != 0:
		// The propagation is changed only after the rootfs and the sources of binds have been
		// bound.
		propagation = unix.MS_PRIVATE | cfg.Propagation&unix.MS_REC
	case cfg.Propagation != 0:
		propagation = cfg.Propagation
	}
	if err := unix.Mount("", "/", "", propagation, ""); err != nil {
		return fmt.Errorf("set propagation of mounts: %w", err)
	}
	dir, err := openRoot(cfg.Dir)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir.fd) }()
	if cfg.Propagation != 0 {
		// pivot_root and moving a mount fail below a shared parent mount, which the spec's
		// propagation may leave. The bind must not appear outside either.
		if err := privateParent(dir); err != nil {
			return fmt.Errorf("make parent mount of rootfs private: %w", err)
		}
	}
	tree, err := cloneTree(dir.fd, true)
	if err != nil {
		return fmt.Errorf("bind rootfs %s: %w", cfg.Dir, err)
	}
	if err := attachTree(tree, dir.fd); err != nil {
		return fmt.Errorf("bind rootfs %s: %w", cfg.Dir, err)
	}
	s.root = root{tree}
	return nil
}

// privateParent makes the mount on which dir is private.
func privateParent(dir root) error {
	if err := unix.Fchdir(dir.fd); err != nil {
		return err
	}
	for range unix.PathMax {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, ".", 0, 0, &st); err != nil {
			return os.NewSyscallError("statx", err)
		}
		if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
			return unix.Mount("", ".", "", unix.MS_PRIVATE, "")
		}
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	return errors.New("no mount found")
}

// enterRootfs makes the rootfs the root of the mount namespace.
func (s *stage) enterRootfs() error {
	if s.cfg.Root.NoPivot {
		return s.moveRoot()
	}
	oldRoot, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/", Err: err}
	}
	defer func() { _ = unix.Close(oldRoot) }()
	if err := unix.Fchdir(s.root.fd); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	err = unix.PivotRoot(".", ".")
	if errors.Is(err, unix.EINVAL) {
		// The kernel refuses pivot_root where the root is an initramfs.
		return s.moveRoot()
	}
	if err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// The old root is mounted on top of the new one now. It becomes a slave first, so that
	// unmounting it does not unmount the mounts from which it was copied.
	if err := unix.Fchdir(oldRoot); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if err := unix.Mount("", ".", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make old root slave: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount old root: %w", err)
	}
	return os.NewSyscallError("chdir", unix.Chdir("/"))
}

// moveRoot moves the rootfs over the root of the mount namespace and enters it. Before that it
// unmounts everything else mounted there, except the root itself, which cannot be unmounted and
// stays hidden underneath.
func (s *stage) moveRoot() error {
	others := s.others
	if others == nil {
		var err error
		if others, err = rootMounts(); err != nil {
			return err
		}
	}
	// As in enterRootfs, the old mounts become slaves, but not those of the container.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make old root slave: %w", err)
	}
	if err := unix.Fchdir(s.root.fd); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move rootfs to /: %w", err)
	}
	// This process's root is still the old one, so absolute paths still lead to mounts below
	// the new root.
	for _, dir := range others {
		err := unix.Mount("", dir, "", unix.MS_SLAVE|unix.MS_REC, "")
		if err == nil {
			err = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		// EINVAL and ENOENT: a mount below another one went with that one, and the rootfs
		// itself has been moved.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	if err := unix.Chroot("."); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	return os.NewSyscallError("chdir", unix.Chdir("/"))
}

// rootMounts lists what is mounted directly on the root mount, the last mount first.
func rootMounts() ([]string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_MNT_ID, &st); err != nil {
		return nil, os.NewSyscallError("statx", err)
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var dirs []string
	lines := bufio.NewScanner(f)
	// A line holds two paths and the options of a filesystem, each at most a page long.
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// The fields: id, parent's id, device, root, mount point, the rest.
		fields := strings.SplitN(lines.Text(), " ", 6)
		if len(fields) == 6 && fields[1] == strconv.FormatUint(st.Mnt_id, 10) && fields[0] != fields[1] {
			dirs = append([]string{unescapeOctal(fields[4])}, dirs...)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	return dirs, nil
}

// unescapeOctal replaces escapes of mountinfo such as \040.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// makeReadonly binds a path onto itself, read-only. A path that does not exist is skipped.
func (s *stage) makeReadonly(name string) error {
	fd, err := s.lookupHidden(name)
	if fd < 0 || err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	tree, err := cloneTree(fd, true)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tree) }()
	if err := setattr(tree, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, false); err != nil {
		return err
	}
	return attachTree(tree, fd)
}

// maskAll hides each path: directories behind one empty filesystem that all share, files behind
// /dev/null.
func (s *stage) maskAll(names []string) error {
	empty := -1 // the empty filesystem, mounted at the first directory
	defer func() {
		if empty >= 0 {
			_ = unix.Close(empty)
		}
	}()
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			continue
		}
		if err := s.mask(name, &empty); err != nil {
			return fmt.Errorf("mask %q: %w", name, err)
		}
	}
	return nil
}

func (s *stage) mask(name string, empty *int) error {
	fd, err := s.lookupHidden(name)
	if fd < 0 || err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	switch {
	case isDir(fd) && *empty < 0:
		if err := mountOn(fd, "tmpfs", "tmpfs", unix.MS_RDONLY, "nr_blocks=1,nr_inodes=1"); err != nil {
			return err
		}
		*empty, err = s.root.lookup(name)
		return err
	case isDir(fd):
		tree, err := cloneTree(*empty, false)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(tree) }()
		return attachTree(tree, fd)
	}
	// The caller's /dev can no longer be reached, so the container's /dev/null is used. It must
	// be the real device: another file would let the container write in place of the hidden
	// one.
	null, err := s.root.open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	defer func() { _ = unix.Close(null) }()
	var st unix.Stat_t
	if err := unix.Fstat(null, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return errors.New("/dev/null of the container is not the null device")
	}
	tree, err := cloneTree(null, false)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tree) }()
	return attachTree(tree, fd)
}

// lookupHidden opens a path that is to be hidden. It returns -1 and no error if the path does
// not exist.
func (s *stage) lookupHidden(name string) (int, error) {
	fd, err := s.root.lookup(name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return -1, nil
	}
	return fd, err
}
