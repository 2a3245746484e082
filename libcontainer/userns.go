package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// userNS is the user namespace of a container. The ids it maps to are the caller's.
type userNS struct {
	uids, gids []syscall.SysProcIDMap
}

// newUserNS has the words of runc.
func newUserNS(l *specs.Linux) (*userNS, error) {
	u := &userNS{uids: idMaps(l.UIDMappings), gids: idMaps(l.GIDMappings)}
	for _, m := range []struct {
		kind string
		maps []syscall.SysProcIDMap
	}{{"uid", u.uids}, {"gid", u.gids}} {
		if len(m.maps) == 0 {
			return nil, fmt.Errorf("user namespaces enabled, but no %s mappings found", m.kind)
		}
		if _, ok := mapped(m.maps, 0); !ok {
			// The stage is that user: who else could set up the container?
			return nil, fmt.Errorf("user namespaces enabled, but no mapping found for %s 0", m.kind)
		}
	}
	return u, nil
}

func idMaps(maps []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range maps {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}

// mapped is what an id of the container is to the caller.
func mapped(maps []syscall.SysProcIDMap, id uint32) (int, bool) {
	for _, m := range maps {
		if int(id) >= m.ContainerID && int(id)-m.ContainerID < m.Size {
			return m.HostID + int(id) - m.ContainerID, true
		}
	}
	return 0, false
}

// owner is what a user and group of the container are to the caller; of one that
// is not mapped, the caller's root, which the container sees as nobody.
func (u *userNS) owner(uid, gid uint32) (int, int) {
	outerUID, _ := mapped(u.uids, uid)
	outerGID, _ := mapped(u.gids, gid)
	return outerUID, outerGID
}

// check refuses, in the words of runc, a process that could not become who it is
// to be.
func (u *userNS) check(p *processConfig) error {
	if u == nil {
		return nil
	}
	if _, ok := mapped(u.uids, p.UID); !ok {
		return errors.New("cannot set uid to unmapped user in user namespace")
	}
	if _, ok := mapped(u.gids, p.GID); !ok {
		return errors.New("cannot set gid to unmapped user in user namespace")
	}
	return nil
}

// give makes a file the container's root's, who could not open it otherwise by
// its path in /proc/self/fd.
func (u *userNS) give(f *os.File) error {
	if u == nil {
		return nil
	}
	uid, gid := u.owner(0, 0)
	if err := f.Chown(uid, gid); err != nil {
		return fmt.Errorf("give stdio to the container's root: %w", err)
	}
	return nil
}

// A container's root in a user namespace can neither make a device node nor, where
// he is not let through, open the source of a bind; and the root of an initramfs
// can't be pivoted away from, which would leave the caller's files underneath the
// container's. So the caller makes a small filesystem, the base, with the rootfs,
// the sources and the nodes mounted in it, over the root of a mount namespace that
// the stage gets a copy of. In that copy the kernel has all mounts locked: nothing
// that a mount covers can be uncovered.
const (
	// baseRoot is the way to what is mounted over the root.
	baseRoot = "/.."

	baseRootfs = "/rootfs"
	baseCgroup = "/cgroup"
	baseInit   = "/init"
)

// baseMount is one mount in the base.
type baseMount struct {
	source    string // the caller's path
	name      string // absolute, in the base
	recursive bool
}

// useBase has the stage find everything in the base.
func (p *plan) useBase() {
	p.base = []baseMount{
		{p.init.Root.Dir, baseRootfs, true},
		{p.initArgs[0], baseInit, false},
		{"/proc", "/proc", false},
	}
	p.initArgs = append([]string{baseInit}, p.initArgs[1:]...)
	p.init.Root.Dir = baseRootfs
	for i := range p.init.Mounts {
		m := &p.init.Mounts[i]
		if m.Flags&unix.MS_BIND == 0 || m.Flags&unix.MS_REMOUNT != 0 {
			continue
		}
		m.From = "/mounts-" + strconv.Itoa(i)
		p.base = append(p.base, baseMount{m.Source, m.From, m.Flags&unix.MS_REC != 0})
		// What is not to be there is not in the base either.
		m.Flags |= unix.MS_REC
	}
	if !p.init.CgroupNS && p.init.CgroupDir != "" {
		p.base = append(p.base, baseMount{p.init.CgroupDir, baseCgroup, false})
		p.init.CgroupDir = baseCgroup
	}
	if !p.init.Root.OwnDev {
		return
	}
	for _, d := range defaultNodes {
		if !hasDevice(p.init.Devices, d.Path) {
			p.init.Devices = append(p.init.Devices, d)
		}
	}
	for i := range p.init.Devices {
		if d := &p.init.Devices[i]; d.Mode&unix.S_IFMT != unix.S_IFIFO {
			d.From = "/device-" + strconv.Itoa(i)
		}
	}
}

// makeBase makes the base on the calling thread, in a mount namespace that ends
// with it.
func (p *plan) makeBase() error {
	// Copied while the thread is in the caller's mount namespace: the caller's own
	// program is not found from another one.
	trees := make([]int, 0, len(p.base))
	defer func() {
		for _, tree := range trees {
			_ = unix.Close(tree)
		}
	}()
	for i := range p.base {
		tree, err := p.base[i].copy()
		if err != nil {
			return err
		}
		trees = append(trees, tree)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare CLONE_NEWNS", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("leave the mounts of the caller: %w", err)
	}
	if err := unix.Mount("base", "/", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "size=1m,mode=755"); err != nil {
		return fmt.Errorf("mount base: %w", err)
	}
	base, err := openRoot(baseRoot)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(base.fd) }()
	for i, tree := range trees {
		if err := p.base[i].attach(base, tree); err != nil {
			return err
		}
	}
	if err := p.makeNodes(base); err != nil {
		return err
	}
	if err := unix.Fchdir(base.fd); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	// The kernel makes no user namespace for a thread whose root is not that of its
	// mount namespace.
	return os.NewSyscallError("chroot", unix.Chroot("."))
}

func (p *plan) makeNodes(base root) error {
	for _, d := range p.init.Devices {
		if d.From == "" {
			continue
		}
		name := path.Base(d.From)
		uid, gid := p.userNS.owner(d.UID, d.GID)
		d.UID, d.GID = uint32(uid), uint32(gid)
		if err := mknod(base.fd, name, &d); err != nil {
			return err
		}
		// The caller's umask was in the way.
		if err := unix.Fchmodat(base.fd, name, d.Mode&0o7777, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: d.Path, Err: err}
		}
	}
	return nil
}

// copy returns a copy of the source's mount.
func (m *baseMount) copy() (tree int, err error) {
	src, err := unix.Open(m.source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "stat", Path: m.source, Err: err}
	}
	defer func() { _ = unix.Close(src) }()
	if tree, err = cloneTree(src, m.recursive); err != nil {
		return -1, &os.PathError{Op: "bind", Path: m.source, Err: err}
	}
	return tree, nil
}

func (m *baseMount) attach(base root, tree int) (err error) {
	var dest int
	if isDir(tree) {
		dest, err = base.mkdirAll(m.name)
	} else {
		dest, err = base.createFile(m.name)
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dest) }()
	err = setattr(tree, unix.MountAttr{Propagation: unix.MS_SLAVE}, true)
	if err == nil {
		err = attachTree(tree, dest)
	}
	if err != nil {
		return &os.PathError{Op: "bind", Path: m.source, Err: err}
	}
	return nil
}

// delegated lists the files of a cgroup that its container may be given.
const delegated = "/sys/kernel/cgroup/delegate"

// delegate makes the cgroup the container's root's, as the specification has it
// where the container has a cgroup namespace and its cgroup mounted writable.
func (c *cgroup) delegate(u *userNS) error {
	uid, _ := u.owner(0, 0)
	names := []string{"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"}
	if b, err := os.ReadFile(delegated); err == nil {
		names = strings.Fields(string(b))
	}
	for _, name := range append(names, "") {
		if err := os.Lchown(path.Join(c.dir, name), uid, -1); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("delegate cgroup: %w", err)
		}
	}
	return nil
}

// writesCgroup says whether the container has its own cgroup mounted writable.
func (p *plan) writesCgroup() bool {
	if !p.init.CgroupNS {
		return false
	}
	for _, m := range p.init.Mounts {
		if m.Type == "cgroup2" && m.Flags&(unix.MS_BIND|unix.MS_RDONLY) == 0 {
			return true
		}
	}
	return false
}
