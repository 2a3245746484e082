package mounts

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

// buildShadow mounts on ShadowDir what tools expect that enter the mount namespace of a
// container: the rootfs, the binds at their destinations, a /proc of its own, and an empty
// read-only tmpfs in place of each filesystem that the guest mounts itself. It makes missing
// mount points in the rootfs, as runc does, and the guest finds them there.
//
// The rootfs is not trusted: every destination is resolved inside it.
func buildShadow(r *Request) (guest []specs.Mount, err error) {
	rootfs, hostDir := r.Shares[0], r.ShadowDir
	if err := unix.Mount(rootfs.HostPath, hostDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("bind rootfs: %w", err)
	}
	// What is mounted here must not appear in the rootfs: see spreadRootfs.
	if err := unix.Mount("", hostDir, "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("leave the mounts of rootfs: %w", err)
	}
	root, err := os.OpenFile(hostDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open rootfs: %w", err)
	}
	defer root.Close()
	binds := map[string]specconv.Share{}
	for _, s := range r.Shares[1:] {
		binds[path.Join(specconv.GuestShareDir, s.Name)] = s
	}
	var guests []*os.File
	defer func() {
		for _, f := range guests {
			f.Close()
		}
	}()
	guest = slices.Clone(r.Mounts)
	for i, m := range r.Mounts {
		bind, isBind := binds[m.Source]
		made, standsFor, err := shadowMount(root, m, bind, isBind, r.UserNS, r.IDMaps)
		if err != nil {
			return nil, fmt.Errorf("error during container init: error mounting %q to rootfs at %q: %w", source(m, bind, isBind), m.Destination, err)
		}
		if standsFor != nil {
			guests = append(guests, standsFor)
		}
		if made && m.Type == "tmpfs" && !hasMode(m.Options) {
			// Otherwise the guest's tmpfs would get the mode of the directory that was just
			// made.
			guest[i].Options = append(slices.Clone(m.Options), tmpfsMode)
		}
	}
	if rootfs.ReadOnly {
		if err := preMake(root, r); err != nil {
			return nil, fmt.Errorf("error during container init: %w", err)
		}
	}
	// These become read-only last, because mount points are made in them too. The guest never
	// sees what a tool of the host, such as podman cp, would write there, so the tool must get
	// an error.
	for _, f := range guests {
		if err := setReadOnlyAt(int(f.Fd()), "", false); err != nil {
			return nil, fmt.Errorf("make the stand-in of the guest's %s read-only: %w", f.Name(), err)
		}
	}
	if rootfs.ReadOnly {
		if err := setReadOnly(hostDir, false); err != nil {
			return nil, err
		}
	}
	return guest, nil
}

// source returns the name by which the user knows a mount's source.
func source(m specs.Mount, bind specconv.Share, isBind bool) string {
	if isBind {
		return bind.HostPath
	}
	return m.Source
}

// tmpfsMode is the default mode of a tmpfs's root (tmpfs(5)). A guest's tmpfs on a mount point
// that was made here gets it as an option.
const tmpfsMode = "mode=1777"

func hasMode(options []string) bool {
	return slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "mode=") })
}

// shadowMount mounts one of the container's mounts in the shadow. made says whether it has made
// the mount point. standsFor is the tmpfs that it has mounted in place of a filesystem of the
// guest, still writable; nil if it has not.
func shadowMount(root *os.File, m specs.Mount, bind specconv.Share, isBind bool, ids *specconv.IDMaps, idmaps IDMaps) (made bool, standsFor *os.File, err error) {
	// A bind that is not a share is of a device that the guest has itself. Here it only needs a
	// file as mount point.
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
	// Only root on the host sees it.
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=1m,mode=755"); err != nil {
		return made, nil, err
	}
	standsFor, err = pathrs.OpenatInRoot(root, m.Destination)
	return made, standsFor, err
}

// remountReadOnly opens the destination again, because a descriptor from before the mount is
// that of the directory below it.
func remountReadOnly(root *os.File, destination string, recursive bool) error {
	target, err := pathrs.OpenatInRoot(root, destination)
	if err != nil {
		return err
	}
	defer target.Close()
	return setReadOnlyAt(int(target.Fd()), "", recursive)
}

// mountPoint opens a destination inside root and makes it if it is missing: a directory, or an
// empty file. For a dangling symbolic link it makes the link's target, inside root, as runc
// does. What it makes belongs to the container's root, who with a user namespace is not the
// caller.
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
	// The resolved path is again opened and made inside root only.
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
	if err := chownToRoot(f, ids); err != nil {
		f.Close()
		return nil, false, err
	}
	return f, true, nil
}

// makeDir makes a directory inside root with its parents.
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
			err = chownToRoot(f, ids)
			f.Close()
		}
		if err != nil {
			made.Close()
			return nil, err
		}
	}
	return made, nil
}

// chownToRoot makes the container's root the owner of a file. ids are the mappings of a user
// namespace; with nil it does nothing.
func chownToRoot(f *os.File, ids *specconv.IDMaps) error {
	if ids == nil {
		return nil
	}
	uid, gid := ids.HostRoot()
	if err := unix.Fchownat(int(f.Fd()), "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("give mount point to the container's root: %w", err)
	}
	return nil
}
