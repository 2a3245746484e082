package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount makes one mount of the spec inside the root. If late is not negative, it is the
// descriptor of a mount that the caller has to make read-only later.
func (s *stage) mount(m *mountConfig) (late int, err error) {
	if m.Flags&unix.MS_REMOUNT != 0 {
		return -1, s.remount(m)
	}
	if m.Type == "cgroup2" && m.Flags&unix.MS_BIND == 0 && !s.cfg.CgroupNS && s.cfg.CgroupDir != "" {
		// Without a cgroup namespace a new cgroup2 mount would show the whole hierarchy, so the
		// container's own cgroup is bound.
		own := *m
		own.Source, own.From = s.cfg.CgroupDir, s.cfg.CgroupDir
		return -1, s.bind(&own)
	}
	if m.Flags&unix.MS_BIND != 0 {
		return -1, s.bind(m)
	}
	return s.mountNew(m)
}

// mountError words the error as runc does.
func mountError(m *mountConfig, err error) error {
	data := ""
	if m.Data != "" {
		data = ", data: " + m.Data
	}
	return fmt.Errorf("mount %s:%s, flags: 0x%x%s: %w", m.Source, m.Destination, m.Flags, data, err)
}

func (s *stage) bind(m *mountConfig) error {
	from := m.Source
	if m.From != "" {
		from = m.From
	}
	src, err := unix.Open(from, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "stat", Path: m.Source, Err: err}
	}
	defer func() { _ = unix.Close(src) }()
	dir := isDir(src)
	var dest int
	if dir {
		// If a file is in the place of a directory, mounting fails with runc's words.
		dest, err = s.root.lookup(m.Destination)
		if err != nil {
			dest, err = s.root.mkdirAll(m.Destination)
		}
	} else {
		dest, err = s.root.createFile(m.Destination)
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dest) }()
	if isDir(dest) != dir {
		return mountError(m, unix.ENOTDIR)
	}
	if err := s.checkDestination(m, dest, src); err != nil {
		return err
	}
	tree, err := cloneTree(src, m.Flags&unix.MS_REC != 0)
	if err != nil {
		return mountError(m, err)
	}
	defer func() { _ = unix.Close(tree) }()
	// The attributes are set before the mount is attached, so nobody sees it without them.
	if m.Set|m.Clear != 0 {
		if err := setattr(tree, unix.MountAttr{Attr_set: m.Set, Attr_clr: m.Clear}, false); err != nil {
			return mountError(m, err)
		}
	}
	if err := attachTree(tree, dest); err != nil {
		return mountError(m, err)
	}
	return finishMount(m, tree)
}

// finishMount does what has to follow after a mount is attached.
func finishMount(m *mountConfig, fd int) error {
	if m.RecursiveSet|m.RecursiveClear != 0 {
		if err := setattr(fd, unix.MountAttr{Attr_set: m.RecursiveSet, Attr_clr: m.RecursiveClear}, true); err != nil {
			return fmt.Errorf("set recursive mount attributes: %w", err)
		}
	}
	for _, p := range m.Propagation {
		attr := unix.MountAttr{Propagation: uint64(p &^ unix.MS_REC)}
		if err := setattr(fd, attr, p&unix.MS_REC != 0); err != nil {
			return fmt.Errorf("set mount propagation: %w", err)
		}
	}
	return nil
}

func (s *stage) mountNew(m *mountConfig) (late int, err error) {
	dest, err := s.destination(m)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(dest) }()
	if err := s.checkDestination(m, dest, -1); err != nil {
		return -1, err
	}
	flags := m.Flags
	isLate := m.Type == "tmpfs" && flags&unix.MS_RDONLY != 0
	if isLate {
		// The filesystem may first have to be filled with device nodes, mount points or a copy.
		flags &^= unix.MS_RDONLY
	}
	if err := mountOn(dest, m.Source, m.Type, flags, m.Data); err != nil {
		return -1, mountError(m, err)
	}
	fd, err := s.root.lookup(m.Destination)
	if err != nil {
		return -1, err
	}
	if m.CopyUp {
		err = copyUp(dest, fd)
	}
	if err == nil {
		err = finishMount(m, fd)
	}
	if err != nil || !isLate {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// destination opens the directory for a new filesystem. It makes the directory if it is
// missing.
func (s *stage) destination(m *mountConfig) (int, error) {
	if m.Type == "proc" || m.Type == "sysfs" {
		// A symbolic link there would put the kernel's files in another place.
		fd, err := s.root.open(m.Destination, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err == nil && !isDir(fd) {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("filesystem %q must be mounted on ordinary directory", m.Type)
		}
		if err == nil {
			return fd, nil
		}
	}
	if m.Type == "tmpfs" && !hasModeOption(m.Data) {
		// The new filesystem gets the mode of the directory that it covers.
		fd, err := s.root.open(m.Destination, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				_ = unix.Close(fd)
				return -1, os.NewSyscallError("fstat", err)
			}
			mode := "mode=" + strconv.FormatUint(uint64(st.Mode&0o7777), 8)
			m.Data = strings.TrimPrefix(m.Data+","+mode, ",")
			return fd, nil
		}
	}
	return s.root.mkdirAll(m.Destination)
}

func hasModeOption(data string) bool {
	for o := range strings.SplitSeq(data, ",") {
		if strings.HasPrefix(o, "mode=") {
			return true
		}
	}
	return false
}

// checkDestination refuses destinations that could not be recognized by their name: the root
// itself, and a place inside /proc to which a link in the image leads. src is the open source
// of a bind, negative for other mounts.
func (s *stage) checkDestination(m *mountConfig, dest, src int) error {
	same, err := sameFile(dest, s.root.fd)
	if err != nil {
		return err
	}
	if same {
		return fmt.Errorf("mount destination %s is the rootfs itself", m.Destination)
	}
	if src >= 0 && m.Destination == "/proc" && !onFilesystem(src, unix.PROC_SUPER_MAGIC) {
		return fmt.Errorf("%q cannot be mounted because it is not of type proc", m.Destination)
	}
	if onFilesystem(dest, unix.PROC_SUPER_MAGIC) && m.Type != "proc" &&
		m.Destination != "/proc" && !strings.HasPrefix(m.Destination, "/proc/") {
		return fmt.Errorf("%q cannot be mounted because it is inside /proc", m.Destination)
	}
	return nil
}

func sameFile(a, b int) (bool, error) {
	var st [2]unix.Statx_t
	for i, fd := range [...]int{a, b} {
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID, &st[i]); err != nil {
			return false, os.NewSyscallError("statx", err)
		}
	}
	return st[0].Ino == st[1].Ino && st[0].Mnt_id == st[1].Mnt_id, nil
}

// remount changes the flags of a mount that exists in the rootfs.
func (s *stage) remount(m *mountConfig) error {
	fd, err := s.root.lookup(m.Destination)
	if err != nil {
		return &os.PathError{Op: "open", Path: m.Destination, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	if m.Flags&unix.MS_BIND != 0 {
		err = setattr(fd, unix.MountAttr{Attr_set: m.Set, Attr_clr: m.Clear}, false)
	} else if isDir(fd) {
		err = mountOn(fd, m.Source, m.Type, m.Flags, m.Data)
	} else {
		err = unix.ENOTDIR
	}
	if err != nil {
		return mountError(m, err)
	}
	return finishMount(m, fd)
}

// copyUp copies the content of the directory src into dst, both open with O_PATH: a tmpfs gets
// a copy of what it covers.
func copyUp(src, dst int) error {
	// An O_PATH descriptor cannot be listed.
	fd, err := unix.Openat(src, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("copy up: %w", err)
	}
	dir := os.NewFile(uintptr(fd), "tmpcopyup source")
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("copy up: %w", err)
	}
	for _, name := range names {
		if err := copyUpOne(fd, dst, name); err != nil {
			return fmt.Errorf("copy up %s: %w", name, err)
		}
	}
	return nil
}

func copyUpOne(src, dst int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = copyUpDir(src, dst, name)
	case unix.S_IFREG:
		err = copyUpFile(src, dst, name)
	case unix.S_IFLNK:
		var target string
		if target, err = readlinkAt(src, name); err == nil {
			err = unix.Symlinkat(target, dst, name)
		}
	default:
		err = unix.Mknodat(dst, name, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func copyUpDir(src, dst int, name string) error {
	if err := unix.Mkdirat(dst, name, 0o700); err != nil {
		return err
	}
	from, err := unix.Openat(src, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(from) }()
	to, err := unix.Openat(dst, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(to) }()
	return copyUp(from, to)
}

func copyUpFile(src, dst int, name string) (err error) {
	from, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	in := os.NewFile(uintptr(from), name)
	defer func() { _ = in.Close() }()
	to, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(to), name)
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = out.ReadFrom(in)
	return err
}
