package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
)

// buildShadow mounts, at hostDir, what a tool that enters this process's mount
// namespace expects of a container: the rootfs, the binds at their
// destinations, a /proc of its own, and an empty read-only tmpfs wherever the
// guest mounts a filesystem of its own. Missing mount points are made in the
// rootfs, as runc does; the guest finds them there.
//
// The rootfs is not trusted: every destination is resolved inside it.
func buildShadow(hostDir string, plan *specconv.Plan, idmaps idMaps) error {
	rootfs := plan.Shares[0]
	if err := unix.Mount(rootfs.HostPath, hostDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind rootfs: %w", err)
	}
	// What is mounted here is not to show in the rootfs: see showRootfs.
	if err := unix.Mount("", hostDir, "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("leave the mounts of rootfs: %w", err)
	}
	root, err := os.OpenFile(hostDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open rootfs: %w", err)
	}
	defer root.Close()
	binds := map[string]specconv.Share{}
	for _, s := range plan.Shares[1:] {
		binds[path.Join(specconv.GuestShareDir, s.Name)] = s
	}
	var guests []*os.File
	defer func() {
		for _, f := range guests {
			f.Close()
		}
	}()
	for i, m := range plan.Guest.Mounts {
		bind, isBind := binds[m.Source]
		made, standsFor, err := shadowMount(root, m, bind, isBind, plan.UserNS, idmaps)
		if err != nil {
			return fmt.Errorf("error during container init: error mounting %q to rootfs at %q: %w", source(m, bind, isBind), m.Destination, err)
		}
		if standsFor != nil {
			guests = append(guests, standsFor)
		}
		if made && m.Type == "tmpfs" && !hasMode(m.Options) {
			// In the guest it would keep the mode of the directory that was there.
			plan.Guest.Mounts[i].Options = append(slices.Clone(m.Options), tmpfsMode)
		}
	}
	if rootfs.ReadOnly {
		if err := preMake(root, plan); err != nil {
			return fmt.Errorf("error during container init: %w", err)
		}
	}
	// Only now, for mount points are made in them, too. What a tool of the host
	// writes there, such as podman cp, the guest never sees: it has to be told.
	for _, f := range guests {
		if err := setReadOnlyAt(int(f.Fd()), "", false); err != nil {
			return fmt.Errorf("make the stand-in of the guest's %s read-only: %w", f.Name(), err)
		}
	}
	if rootfs.ReadOnly {
		return setReadOnly(hostDir, false)
	}
	return nil
}

// source is the name the user knows a mount's source by.
func source(m specs.Mount, bind specconv.Share, isBind bool) string {
	if isBind {
		return bind.HostPath
	}
	return m.Source
}

// tmpfsMode is what the root of a tmpfs has unless told otherwise, tmpfs(5).
const tmpfsMode = "mode=1777"

func hasMode(options []string) bool {
	return slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "mode=") })
}

// shadowMount mounts one of the container's mounts in the shadow, and says whether
// it has made the directory or file it is on. It returns what stands for a
// filesystem of the guest's own, if that is what it has mounted, still writable.
func shadowMount(root *os.File, m specs.Mount, bind specconv.Share, isBind bool, ids *specconv.IDMaps, idmaps idMaps) (made bool, standsFor *os.File, err error) {
	// A bind that is no share is of a device the guest has itself; a file to put
	// it on is all it needs here.
	isDevice := !isBind && m.Type == "bind"
	target, made, err := mountPoint(root, m.Destination, !isDevice && (!isBind || bind.IsDir), ids)
	if err != nil {
		return false, nil, err
	}
	defer target.Close()
	at := "/proc/self/fd/" + strconv.Itoa(int(target.Fd()))
	switch {
	case isBind:
		if err := idmaps.bind(bind, at); err != nil {
			return made, nil, err
		}
		if !bind.ReadOnly {
			return made, nil, nil
		}
		return made, nil, remountReadOnly(root, m.Destination, bind.Recursive)
	case isDevice:
		return made, nil, nil
	case m.Type == "proc":
		return made, nil, unix.Mount("proc", at, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	// Only root on the host ever sees it.
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=1m,mode=755"); err != nil {
		return made, nil, err
	}
	standsFor, err = pathrs.OpenatInRoot(root, m.Destination)
	return made, standsFor, err
}

// remountReadOnly opens the destination anew: the handle from before the mount
// is the directory below it.
func remountReadOnly(root *os.File, destination string, recursive bool) error {
	target, err := pathrs.OpenatInRoot(root, destination)
	if err != nil {
		return err
	}
	defer target.Close()
	return setReadOnlyAt(int(target.Fd()), "", recursive)
}

// mountPoint opens a destination inside root and makes it when it is missing: a
// directory, or an empty file to bind a file on. A symbolic link to nowhere is
// followed, inside root, and what it names is made, as runc does. What is made is
// the container's root's, which with a user namespace is not this one's.
func mountPoint(root *os.File, destination string, dir bool, ids *specconv.IDMaps) (_ *os.File, made bool, err error) {
	f, err := pathrs.OpenatInRoot(root, destination)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, false, err
	}
	resolved, err := securejoin.SecureJoin(root.Name(), destination)
	if err != nil {
		return nil, false, err
	}
	destination, err = filepath.Rel(root.Name(), resolved)
	if err != nil {
		return nil, false, err
	}
	// What was resolved by name is made and opened inside root all the same.
	if dir {
		f, err = makeDir(root, destination, ids)
		return f, true, err
	}
	parent, err := makeDir(root, filepath.Dir(destination), ids)
	if err != nil {
		return nil, false, err
	}
	defer parent.Close()
	name := filepath.Base(destination)
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, false, fmt.Errorf("create mount point: %w", err)
	}
	f = os.NewFile(uintptr(fd), name)
	if err := give(f, ids); err != nil {
		f.Close()
		return nil, false, err
	}
	return f, true, nil
}

// makeDir makes a directory inside root with those that lead to it.
func makeDir(root *os.File, dir string, ids *specconv.IDMaps) (*os.File, error) {
	if ids == nil {
		return pathrs.MkdirAllHandle(root, dir, 0o755)
	}
	var missing []string
	for at := dir; at != "."; at = filepath.Dir(at) {
		f, err := pathrs.OpenatInRoot(root, at)
		if err == nil {
			f.Close()
			break
		}
		missing = append(missing, at)
	}
	made, err := pathrs.MkdirAllHandle(root, dir, 0o755)
	if err != nil {
		return nil, err
	}
	for _, at := range missing {
		f, err := pathrs.OpenatInRoot(root, at)
		if err == nil {
			err = give(f, ids)
			f.Close()
		}
		if err != nil {
			made.Close()
			return nil, err
		}
	}
	return made, nil
}

func give(f *os.File, ids *specconv.IDMaps) error {
	if ids == nil {
		return nil
	}
	uid, gid := ids.HostRoot()
	if err := unix.Fchownat(int(f.Fd()), "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("give mount point to the container's root: %w", err)
	}
	return nil
}

// enterShadow makes the shadow this process's root. From here on nothing may be
// opened or executed by path: the rootfs is the container's to forge.
func enterShadow(hostDir string) error {
	if err := unix.Chdir(hostDir); err != nil {
		return fmt.Errorf("enter rootfs: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter rootfs: pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("enter rootfs: detach the host's mounts: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter rootfs: %w", err)
	}
	return nil
}

// dress gives this process the rest of the container's appearance on the host:
// host name, domain name and OOM score. Where the host forbids one of them
// nothing is lost, for the guest has its own.
func dress(s specconv.Shadow) {
	for _, ns := range s.Namespaces {
		if ns.Type != specs.UTSNamespace || ns.Path != "" {
			continue
		}
		if s.Hostname != "" {
			_ = unix.Sethostname([]byte(s.Hostname))
		}
		if s.Domainname != "" {
			_ = unix.Setdomainname([]byte(s.Domainname))
		}
	}
	if s.OOMScoreAdj != nil {
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*s.OOMScoreAdj)), 0)
	}
}
