package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// defaultNodes are the device nodes that every container has.
var defaultNodes = [...]deviceConfig{
	{Path: "/dev/null", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 3)},
	{Path: "/dev/zero", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 5)},
	{Path: "/dev/full", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 7)},
	{Path: "/dev/random", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 8)},
	{Path: "/dev/urandom", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 9)},
	{Path: "/dev/tty", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(5, 0)},
}

// setUpDev makes the device nodes and links that every container has, and those of the spec.
func (s *stage) setUpDev() error {
	for _, d := range defaultNodes {
		// A node that the spec lists replaces the default one of the same path.
		if hasDevice(s.cfg.Devices, d.Path) {
			continue
		}
		if err := s.makeDevice(&d); err != nil {
			return err
		}
	}
	for i := range s.cfg.Devices {
		if err := s.makeDevice(&s.cfg.Devices[i]); err != nil {
			return err
		}
	}
	dev, err := s.root.mkdirAll("/dev")
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dev) }()
	if err := unix.Unlinkat(dev, "ptmx", 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlink", Path: "/dev/ptmx", Err: err}
	}
	for _, l := range [...]struct{ target, name string }{
		{"pts/ptmx", "ptmx"},
		{"/proc/self/fd", "fd"},
		{"/proc/self/fd/0", "stdin"},
		{"/proc/self/fd/1", "stdout"},
		{"/proc/self/fd/2", "stderr"},
		{"/proc/kcore", "core"},
	} {
		if l.name == "core" {
			fd, err := s.root.lookup(l.target)
			if err != nil {
				continue
			}
			_ = unix.Close(fd)
		}
		err := unix.Symlinkat(l.target, dev, l.name)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "symlink", Path: "/dev/" + l.name, Err: err}
		}
	}
	return nil
}

func hasDevice(devices []deviceConfig, name string) bool {
	return slices.ContainsFunc(devices, func(d deviceConfig) bool { return d.Path == name })
}

func (s *stage) makeDevice(d *deviceConfig) error {
	if d.From != "" {
		return s.bindFromBase(d)
	}
	dir, base := path.Split(d.Path)
	dirFD, err := s.root.mkdirAll(dir)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dirFD) }()
	err = mknod(dirFD, base, d)
	switch {
	case errors.Is(err, unix.EEXIST) && s.cfg.Root.Readonly && isEmptyFile(dirFD, base):
		// The caller made the rootfs read-only and left this empty file as a mount point for
		// the node.
		return s.bindDevice(dirFD, d)
	case errors.Is(err, unix.EEXIST):
		return checkDevice(dirFD, base, d)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP):
		// A network filesystem may refuse device nodes, so the node is mounted on an empty
		// file.
		if bindErr := s.bindDevice(dirFD, d); bindErr != nil {
			return errors.Join(err, bindErr)
		}
		return nil
	}
	return err
}

func isEmptyFile(dirFD int, base string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(dirFD, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0
}

func mknod(dirFD int, base string, d *deviceConfig) error {
	if err := unix.Mknodat(dirFD, base, d.Mode, int(d.Dev)); err != nil {
		return &os.PathError{Op: "mknod", Path: d.Path, Err: err}
	}
	if err := unix.Fchownat(dirFD, base, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: d.Path, Err: err}
	}
	return nil
}

// bindFromBase mounts a node of the base on an empty file.
func (s *stage) bindFromBase(d *deviceConfig) error {
	node, err := unix.Open(d.From, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: d.Path, Err: err}
	}
	defer func() { _ = unix.Close(node) }()
	tree, err := cloneTree(node, false)
	if err != nil {
		return fmt.Errorf("bind device %s: %w", d.Path, err)
	}
	defer func() { _ = unix.Close(tree) }()
	file, err := s.root.createFile(d.Path)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(file) }()
	if err := attachTree(tree, file); err != nil {
		return fmt.Errorf("bind device %s: %w", d.Path, err)
	}
	return nil
}

// bindDevice mounts a device node on an empty file. It makes the node in a tmpfs that covers
// the file's directory only until the node has been bound.
func (s *stage) bindDevice(dirFD int, d *deviceConfig) error {
	if err := mountOn(dirFD, "tmpfs", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "nr_blocks=1,nr_inodes=2"); err != nil {
		return fmt.Errorf("bind device %s: %w", d.Path, err)
	}
	tree, err := s.deviceTree(d)
	if err != nil {
		return fmt.Errorf("bind device %s: %w", d.Path, err)
	}
	defer func() { _ = unix.Close(tree) }()
	file, err := s.root.createFile(d.Path)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(file) }()
	if err := attachTree(tree, file); err != nil {
		return fmt.Errorf("bind device %s: %w", d.Path, err)
	}
	return nil
}

// deviceTree makes the node in the tmpfs mounted on its directory, unmounts the tmpfs, and
// returns a detached mount of the node alone.
func (s *stage) deviceTree(d *deviceConfig) (tree int, err error) {
	dir, base := path.Split(d.Path)
	top, err := s.root.lookup(dir)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(top) }()
	defer func() {
		if uerr := unmount(top); uerr != nil && err == nil {
			_ = unix.Close(tree)
			tree, err = -1, uerr
		}
	}()
	if err := mknod(top, base, d); err != nil {
		return -1, err
	}
	node, err := unix.Openat(top, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(node) }()
	return cloneTree(node, false)
}

// unmount unmounts the mount whose root directory is open as fd.
func unmount(fd int) error {
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	return unix.Unmount(".", unix.MNT_DETACH)
}

// checkDevice accepts an existing node of the rootfs only if it is the same device, as the
// runtime spec asks.
func checkDevice(dirFD int, base string, d *deviceConfig) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dirFD, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: d.Path, Err: err}
	}
	if st.Mode&unix.S_IFMT != d.Mode&unix.S_IFMT || st.Rdev != d.Dev {
		return fmt.Errorf("device %s: a file that is another one is in its place", d.Path)
	}
	return nil
}

// openConsole opens a pty in the container's devpts. The process gets the slave as stdio and as
// controlling terminal, and the container's first process also as /dev/console; the parent gets
// the master.
func (s *stage) openConsole() error {
	// /dev/ptmx would be a file of the image where no mount covers it.
	master, err := s.root.open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/pts/ptmx", Err: err}
	}
	defer func() { _ = unix.Close(master) }()
	if !onFilesystem(master, unix.DEVPTS_SUPER_MAGIC) {
		return errors.New("open terminal: no devpts is mounted on /dev/pts")
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock terminal: %w", err)
	}
	slave, err := ptyPeer(master)
	if err != nil {
		return fmt.Errorf("open terminal: %w", err)
	}
	defer func() { _ = unix.Close(slave) }()
	if size := s.cfg.Process.ConsoleSize; size != nil {
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, size); err != nil {
			return fmt.Errorf("set terminal size: %w", err)
		}
	}
	if s.cfg.Process.BareNewlines {
		if err := clearONLCR(master); err != nil {
			return fmt.Errorf("set terminal: %w", err)
		}
	}
	if !s.cfg.Join {
		if err := s.bindConsole(slave); err != nil {
			return fmt.Errorf("bind terminal to /dev/console: %w", err)
		}
	}
	if err := sendFrame(s.sock, frameConsole, "", master); err != nil {
		return fmt.Errorf("send terminal: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	// The init stage has led its own session since the fork, so it may take a terminal.
	if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("set controlling terminal: %w", err)
	}
	return nil
}

// clearONLCR stops the terminal from writing \r\n for \n.
func clearONLCR(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Oflag &^= unix.ONLCR
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

func (s *stage) bindConsole(slave int) error {
	dest, err := s.root.createFile("/dev/console")
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dest) }()
	tree, err := cloneTree(slave, false)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tree) }()
	return attachTree(tree, dest)
}
