package specconv

import (
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// initPrefix is how runc begins the text of errors while it sets a container up. Engines match
// these words. A missing source of a bind is found here, before there is a container.
const initPrefix = "unable to start container process: error during container init: "

// guestMountTypes are the filesystems that the guest makes by itself.
var guestMountTypes = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}

// overlay is the filesystem type that the host mounts, from directories of the host, and
// exports.
const overlay = "overlay"

// procFiles are the only files below /proc that a mount may cover, as with runc. lxcfs and
// similar programs replace them by the container's own view.
var procFiles = map[string]bool{
	"/proc/cpuinfo": true, "/proc/diskstats": true, "/proc/meminfo": true, "/proc/stat": true,
	"/proc/swaps": true, "/proc/uptime": true, "/proc/loadavg": true, "/proc/slabinfo": true,
	"/proc/net/dev": true, "/proc/sys/kernel/ns_last_pid": true, "/proc/sys/crypto/fips_enabled": true,
}

// isBind says whether a mount is a bind. The option bind makes it one; type "bind" without the
// option counts too.
func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// destination returns the absolute path at which the container sees a mount. The spec says that
// relative destinations are deprecated and start at "/".
func destination(m specs.Mount) string { return path.Clean("/" + m.Destination) }

// lastOf returns which option of the set comes last, because later options override earlier
// ones.
func lastOf(options []string, set ...string) string {
	for _, o := range slices.Backward(options) {
		if slices.Contains(set, o) {
			return o
		}
	}
	return ""
}

func readOnly(options []string) bool {
	return lastOf(options, "ro", "rw") == "ro" || lastOf(options, "rro", "rrw") == "rro"
}

func validateMounts(spec *specs.Spec) error {
	for i, m := range spec.Mounts {
		field := index("mounts", i)
		if m.Destination == "" {
			return fieldErrorf(field+".destination", "must not be empty")
		}
		dest := destination(m)
		if dest == "/" {
			return fieldErrorf(field+".destination", "%s is the rootfs itself", quote(m.Destination))
		}
		if err := validateIDMapped(field, m, hasNamespace(spec.Linux, specs.UserNamespace)); err != nil {
			return err
		}
		if m.Type != "proc" && m.Type != "sysfs" {
			if dest == "/proc" {
				return fieldErrorf(field+".destination", "%s cannot be mounted because it is not of type proc", quote(dest))
			}
			if strings.HasPrefix(dest, "/proc/") && !procFiles[dest] {
				return fieldErrorf(field+".destination", "%s cannot be mounted because it is inside /proc", quote(dest))
			}
		}
		switch {
		case isBind(m) && m.Source == "":
			return fieldErrorf(field+".source", "must not be empty")
		case !isBind(m) && m.Type != overlay && !slices.Contains(guestMountTypes, m.Type):
			return fieldErrorf(field+".type", "%s is not supported: supported are bind, overlay, %s", quote(m.Type), strings.Join(guestMountTypes, ", "))
		}
	}
	return nil
}

// mounts converts spec.Mounts. The same function makes both halves of a bind, the share and the
// guest's mount, so that they always match.
func (c *converter) mounts(spec *specs.Spec) error {
	if !slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return destination(m) == deviceDir.Destination }) {
		c.guestMount(deviceDir) // it is first, because others may be below it
	}
	c.ownIPC = slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.IPCNamespace && ns.Path == ""
	})
	for i, m := range spec.Mounts {
		field := index("mounts", i)
		if !strings.HasPrefix(m.Destination, "/") {
			c.warn.addf(field+".destination", "%s is relative, which is deprecated: taken as %s", quote(m.Destination), quote(destination(m)))
		}
		if !isBind(m) && m.Type == overlay {
			c.overlay(i, m)
			continue
		}
		if !isBind(m) {
			c.guestMount(specs.Mount{Destination: destination(m), Type: m.Type, Source: m.Source, Options: m.Options})
			continue
		}
		if err := c.bind(field, i, m); err != nil {
			return err
		}
	}
	return nil
}

// deviceDir is what the guest mounts on /dev if the spec mounts nothing there. Device nodes
// cannot be made in the rootfs, because the share's filesystem has none that work in the guest.
// What the image has in its /dev is copied.
var deviceDir = specs.Mount{
	Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
	Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k", "tmpcopyup"},
}

func (c *converter) guestMount(m specs.Mount) {
	c.plan.Guest.Mounts = append(c.plan.Guest.Mounts, m)
}

// overlay plans an overlay filesystem that the host mounts, as podman asks for with --mount
// type=image and -v DIR:DIR:O, and that the guest binds.
func (c *converter) overlay(i int, m specs.Mount) {
	var data []string
	options := []string{"bind"}
	for _, o := range m.Options {
		if strings.Contains(o, "=") || o == "volatile" || o == "userxattr" {
			data = append(data, o)
		} else {
			options = append(options, o)
		}
	}
	share := Share{
		HostPath:    c.hostPath(m.Source),
		Name:        shareName(i, m.Source),
		ReadOnly:    readOnly(m.Options),
		IsDir:       true,
		Destination: destination(m),
		Overlay:     strings.Join(data, ","),
	}
	c.plan.Shares = append(c.plan.Shares, share)
	c.guestMount(specs.Mount{Destination: share.Destination, Type: "bind", Source: path.Join(GuestShareDir, share.Name), Options: options})
}

func (c *converter) bind(field string, i int, m specs.Mount) error {
	source, dest := c.hostPath(m.Source), destination(m)
	file, err := c.host.Stat(source)
	if err != nil {
		return fmt.Errorf("%serror mounting %q to rootfs at %q: %w", initPrefix, m.Source, dest, err)
	}
	if c.ownCgroups(field, source, m) {
		return nil
	}
	own, err := c.guestsOwn(field, source, m)
	if err != nil {
		return err
	}
	if own != nil {
		c.guestMount(*own)
		return nil
	}
	guest := specs.Mount{Destination: dest, Type: "bind", Options: bindOptions(m.Options)}
	switch {
	case file.Type&fs.ModeDevice != 0 && isIDMapped(m):
		return fieldErrorf(field, "a device cannot be id-mapped: the node is the guest's own")
	case file.Type&fs.ModeDevice != 0:
		if guest.Source, err = deviceSource(field, source, file); err != nil {
			return err
		}
		c.guestMount(guest)
		return nil
	case file.Type&fs.ModeSocket != 0:
		c.warn.addf(field, "%s is a socket: connecting to it from the guest does not reach the host", quote(source))
	case file.Type&fs.ModeNamedPipe != 0:
		c.warn.addf(field, "%s is a fifo: opening it from the guest does not reach the host", quote(source))
	case file.Type&fs.ModeIrregular != 0:
		return fieldErrorf(field+".source", "%s is neither a file nor a directory", quote(source))
	}
	share := Share{
		HostPath:    source,
		Name:        shareName(i, source),
		ReadOnly:    readOnly(m.Options),
		Recursive:   lastOf(m.Options, "bind", "rbind") == "rbind",
		IsDir:       file.Type.IsDir(),
		Destination: dest,
		IDMap:       c.mountIDMap(m),
	}
	c.plan.Shares = append(c.plan.Shares, share)
	guest.Source = path.Join(GuestShareDir, share.Name)
	c.guestMount(guest)
	return nil
}

const cgroupDir = "/sys/fs/cgroup"

// ownCgroups handles a bind of one of the host's cgroup v1 hierarchies, by which podman gives a
// container with systemd the cgroups to manage. The guest has version 2 only, which systemd
// also works with: the container gets it writable, as the root of a cgroup namespace.
func (c *converter) ownCgroups(field, source string, m specs.Mount) bool {
	dest := destination(m)
	if !strings.HasPrefix(source, cgroupDir+"/") || !strings.HasPrefix(dest, cgroupDir+"/") {
		return false
	}
	i := slices.IndexFunc(c.plan.Guest.Mounts, func(own specs.Mount) bool {
		return own.Destination == cgroupDir && (own.Type == "cgroup" || own.Type == "cgroup2")
	})
	if i < 0 {
		return false
	}
	c.warn.addf(field, "%s is left out: the container has the guest's cgroup version 2 at %s", quote(source), cgroupDir)
	if !readOnly(m.Options) {
		own := &c.plan.Guest.Mounts[i]
		own.Options = slices.DeleteFunc(slices.Clone(own.Options), func(o string) bool { return o == "ro" })
		c.managesCgroups = true
	}
	return true
}

// bindOptions returns the options of the guest's mount. A bind by type only gets the option
// bind, which the guest looks for.
//
// Options for id mappings are left out, because ids are mapped on the host.
func bindOptions(options []string) []string {
	if lastOf(options, "idmap", "ridmap") != "" {
		options = slices.DeleteFunc(slices.Clone(options), func(o string) bool { return o == "idmap" || o == "ridmap" })
	}
	if lastOf(options, "bind", "rbind") != "" {
		return options
	}
	return append([]string{"bind"}, options...)
}

// shareName returns a name that is unique by the mount's number and ends in the source's name,
// because mountinfo should show that name as the root of the bind.
func shareName(i int, hostPath string) string {
	base := filepath.Base(hostPath)
	if base == "/" {
		base = "root"
	}
	return fmt.Sprintf("mounts/%d/%s", i, base)
}

// deviceSource returns the path of the guest's node for a device node of the host. It is bound
// from the guest's own /dev and not shared: a bind over an existing file, such as /dev/null
// over a configuration file, must leave that file unchanged.
func deviceSource(field, source string, f File) (string, error) {
	kind := "b"
	if f.Type&fs.ModeCharDevice != 0 {
		kind = "c"
		if guestPath, ok := guestDevices[deviceNumber{int64(f.Major), int64(f.Minor)}]; ok {
			return guestPath, nil
		}
	}
	return "", fieldErrorf(field+".source", "%s is a device of the host (%s %d:%d): not supported yet", quote(source), kind, f.Major, f.Minor)
}

// guestsOwn returns the guest's own mount in place of a bind of something of the host's kernel
// that means nothing in the guest, or works badly over a share. It returns nil if the bind has
// to be shared.
func (c *converter) guestsOwn(field, source string, m specs.Mount) (*specs.Mount, error) {
	dest := destination(m)
	own := &specs.Mount{Destination: dest, Options: []string{"nosuid", "noexec", "nodev"}}
	if readOnly(m.Options) {
		own.Options = append(own.Options, "ro")
	}
	switch {
	case dest == "/dev/shm":
		// podman, CRI and Docker's shareable ipc mode bind a tmpfs of the host. Programs such
		// as PostgreSQL and Chrome use shared memory by mmap(MAP_SHARED) of its files, for
		// which 9p is neither coherent nor fast.
		shm, err := c.host.Filesystem(source)
		if err != nil {
			return nil, fmt.Errorf("%serror mounting %q to rootfs at %q: %w", initPrefix, m.Source, dest, err)
		}
		if !shm.Tmpfs {
			return nil, nil
		}
		own.Type, own.Source = "tmpfs", "shm"
		own.Options = append(own.Options, "mode=1777")
		if shm.SizeBytes > 0 {
			own.Options = append(own.Options, fmt.Sprintf("size=%dk", max(shm.SizeBytes>>10, 4)))
		}
		if c.ownIPC && source != "/dev/shm" {
			// The engine has made it for this container. Others could share it only by joining
			// the ipc namespace, which is refused, so nothing is lost. There is no warning,
			// because engines that do not know husk show warnings as the container's output.
			return own, nil
		}
	case dest == "/dev/mqueue" && source == "/dev/mqueue":
		own.Type, own.Source = "mqueue", "mqueue"
	case dest == "/sys/fs/cgroup" && source == "/sys/fs/cgroup":
		own.Type, own.Source = "cgroup", "cgroup"
	default:
		return nil, nil
	}
	c.warn.addf(field, "%s at %s is a %s of the guest's own: it is not shared with the host or other containers", quote(source), dest, own.Type)
	return own, nil
}
