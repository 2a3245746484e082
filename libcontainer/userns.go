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

// userNS is the user namespace of a container. The host's ids in its mappings are ids of the
// caller's user namespace.
type userNS struct {
	uids, gids []syscall.SysProcIDMap
}

// newUserNS returns the container's user namespace, nil if it has none. Its errors have runc's
// words.
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
			// The init stage runs as uid and gid 0 of the namespace, so both need a mapping.
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

// mapped returns the caller's id for an id of the container. ok is false if it has no mapping.
func mapped(maps []syscall.SysProcIDMap, id uint32) (int, bool) {
	for _, m := range maps {
		if int(id) >= m.ContainerID && int(id)-m.ContainerID < m.Size {
			return m.HostID + int(id) - m.ContainerID, true
		}
	}
	return 0, false
}

// owner returns the caller's ids for a uid and a gid of the container. An id without a mapping
// becomes the caller's root, which the container sees as nobody.
func (u *userNS) owner(uid, gid uint32) (int, int) {
	outerUID, _ := mapped(u.uids, uid)
	outerGID, _ := mapped(u.gids, gid)
	return outerUID, outerGID
}

// check returns an error, in runc's words, if a uid or gid of the process has no mapping.
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

// chown makes the container's root the owner of a file. Otherwise the container could not open
// the file by its path in /proc/self/fd.
func (u *userNS) chown(f *os.File) error {
	if u == nil {
		return nil
	}
	uid, gid := u.owner(0, 0)
	if err := f.Chown(uid, gid); err != nil {
		return fmt.Errorf("give stdio to the container's root: %w", err)
	}
	return nil
}

// The base is a small filesystem that the caller makes for a container with a user namespace.
// It holds mounts of the rootfs, of the sources of binds and of the device nodes. It is needed
// because root in a user namespace cannot make device nodes, and cannot open the source of a
// bind in a directory that it may not enter.
//
// The base is mounted over the root of a new mount namespace, because the root of an initramfs
// cannot be replaced by pivot_root. The init stage gets a copy of that mount namespace. In the
// copy the kernel locks all mounts: the container cannot unmount one to see what is below it,
// such as the caller's files.
const (
	// baseRoot is the path of the filesystem mounted over the root: ".." of the root follows
	// what is mounted there.
	baseRoot = "/.."

	baseRootfs = "/rootfs"
	baseCgroup = "/cgroup"
	baseInit   = "/init"
)

// baseMount is one mount in the base.
type baseMount struct {
	source    string // path of the caller
	name      string // absolute path in the base
	recursive bool
}

// useBase changes the plan so that the stage finds everything in the base.
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
		// The base holds exactly what is to be bound, so all of it is bound.
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

// makeBase makes the base in a new mount namespace of the calling thread. It goes when the
// thread ends and no process uses it.
func (p *plan) makeBase() error {
	// The trees are copied while the thread is still in the caller's mount namespace: from
	// another one it could not find the caller's own program.
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
	// The kernel refuses a new user namespace to a thread whose root directory is not the root
	// of its mount namespace.
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
		// mknod has applied the caller's umask.
		if err := unix.Fchmodat(base.fd, name, d.Mode&0o7777, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: d.Path, Err: err}
		}
	}
	return nil
}

// copy returns a detached copy of the source's mount.
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

// delegated is a file that lists the cgroup files which a container may own.
const delegated = "/sys/kernel/cgroup/delegate"

// delegate makes the container's root the owner of the cgroup. The runtime spec asks for that
// if the container has a cgroup namespace and its cgroup is mounted writable.
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
