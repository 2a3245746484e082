package specconv

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/specconv/seccomp"
	"github.com/huskvm/husk/linux/sysctl"
)

// shareOptions are the mount options with which the guest mounts the share.
//
//   - version=9p2000.L: the dialect with Linux's modes, links, locks and xattrs.
//   - cache=mmap: without a cache the guest cannot mmap a file shared and writable. With
//     cache=loose or fscache the guest would not see what the host writes. mmap caches only
//     mapped files.
//   - msize=512000: bytes for one request. With the default of 128 KiB there are four times as
//     many round trips. A larger value is cut by the number of the transport's descriptors.
//   - access=client: each user of the guest acts on the server with his own uid, so that a new
//     file gets it; the guest's kernel checks permissions. With access=any all files would
//     belong to the user who mounted.
const shareOptions = "trans=virtio,version=9p2000.L,cache=mmap,msize=512000,access=client"

// rootfsName is the name of the rootfs in the share.
const rootfsName = "rootfs"

// converter is the state of one call of Convert.
type converter struct {
	env  Env
	host Host
	plan *Plan
	warn warnings
	// ownIPC: the container has a new ipc namespace.
	ownIPC bool
	// managesCgroups: the container may make cgroups of its own.
	managesCgroups bool
}

// Convert makes the plan for a container. First it checks the whole spec (Validate), then what
// the spec says about files of the host. Error texts are runc's where engines match them.
func Convert(env Env, spec *specs.Spec) (*Plan, error) {
	if err := Validate(spec); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(env.Bundle) {
		return nil, fmt.Errorf("convert spec: bundle %s is not an absolute path", quote(env.Bundle))
	}
	if env.ID == "" || strings.Contains(env.ID, "/") {
		return nil, fmt.Errorf("convert spec: container id %s is not one path element", quote(env.ID))
	}
	c := &converter{env: env, host: env.Host, plan: &Plan{ShareOptions: shareOptions}}
	if c.host == nil {
		c.host = thisHost{}
	}
	for _, step := range []func(*specs.Spec) error{c.vm, c.guest, c.rootfs, c.userNamespace, c.mounts, c.notify, c.linux} {
		if err := step(spec); err != nil {
			return nil, err
		}
	}
	c.shadow(spec)
	var err error
	if c.plan.Weakened, err = annotatedWalls(spec.Annotations); err != nil {
		return nil, err
	}
	c.otherPlatforms(spec)
	namespaceWarnings(spec, &c.warn)
	if err := checkRequestSize("config.json", c.plan.Guest); err != nil {
		return nil, err
	}
	c.plan.Warnings = c.warn
	return c.plan, nil
}

// hostPath returns a path of the spec as an absolute path. Relative paths start at the bundle.
func (c *converter) hostPath(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(c.env.Bundle, p)
}

// guest starts the guest's spec with the fields that no other step sets. It has only the hooks
// that run in the guest. The annotations are part of the state that hooks get; nothing else in
// the guest uses them.
func (c *converter) guest(spec *specs.Spec) error {
	process, dropped, err := ConvertProcess(spec.Process)
	if err != nil {
		return err
	}
	c.warn = append(c.warn, dropped...)
	InheritRlimits(process, c.env.Rlimits)
	c.plan.Guest = &specs.Spec{
		Version:    specs.Version,
		Process:    process,
		Hostname:   spec.Hostname,
		Domainname: spec.Domainname,
	}
	if h := spec.Hooks; h != nil && len(h.StartContainer) > 0 {
		c.plan.Guest.Hooks = &specs.Hooks{StartContainer: h.StartContainer}
		c.plan.Guest.Annotations = spec.Annotations
	}
	return nil
}

func (c *converter) rootfs(spec *specs.Spec) error {
	hostDir := c.hostPath(spec.Root.Path)
	file, err := c.host.Stat(hostDir)
	if err != nil {
		return fmt.Errorf("invalid rootfs: %w", err)
	}
	if !file.Type.IsDir() {
		return fmt.Errorf("invalid rootfs: %s is not a directory", hostDir)
	}
	if err := c.notSymlinked(spec.Root.Path, hostDir); err != nil {
		return err
	}
	c.plan.Shares = append(c.plan.Shares, Share{
		HostPath:    hostDir,
		Name:        rootfsName,
		ReadOnly:    spec.Root.Readonly,
		Recursive:   true, // as with runc, mounts below the rootfs belong to it
		IsDir:       true,
		Destination: "/",
	})
	c.plan.Guest.Root = &specs.Root{Path: path.Join(GuestShareDir, rootfsName), Readonly: spec.Root.Readonly}
	return nil
}

// notSymlinked refuses, as runc does, a rootfs whose path in the bundle has a symbolic link: a
// user who may write where the link is could replace the directory. Links in the bundle's own
// path do not matter.
func (c *converter) notSymlinked(rootPath, hostDir string) error {
	real, err := c.host.RealPath(hostDir)
	if err != nil {
		return fmt.Errorf("invalid rootfs: %w", err)
	}
	want := hostDir
	if !filepath.IsAbs(rootPath) {
		bundle, err := c.host.RealPath(c.env.Bundle)
		if err != nil {
			return fmt.Errorf("invalid rootfs: %w", err)
		}
		want = filepath.Join(bundle, rootPath)
	}
	if real != want {
		return fmt.Errorf("invalid rootfs: root.path: %s: not an absolute path, or a symlink", quote(hostDir))
	}
	return nil
}

func (c *converter) linux(spec *specs.Spec) error {
	l := spec.Linux
	devices, err := c.devices(l)
	if err != nil {
		return err
	}
	if c.plan.Seccomp, err = seccomp.Compile(l.Seccomp); err != nil {
		return err
	}
	resources, dropped := guestResources(l.Resources)
	c.warn.drop(dropped...)
	c.plan.Guest.Linux = &specs.Linux{
		Namespaces:        guestNamespaces(l),
		Sysctl:            guestSysctls(l),
		Resources:         resources,
		Devices:           devices,
		RootfsPropagation: l.RootfsPropagation,
		MaskedPaths:       l.MaskedPaths,
		ReadonlyPaths:     l.ReadonlyPaths,
	}
	if c.managesCgroups && !hasNamespace(l, specs.CgroupNamespace) {
		c.plan.Guest.Linux.Namespaces = append(c.plan.Guest.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	if m := c.plan.UserNS; m != nil {
		c.plan.Guest.Linux.UIDMappings, c.plan.Guest.Linux.GIDMappings = m.UID, m.GID
	}
	if len(l.TimeOffsets) > 0 {
		c.plan.Guest.Linux.TimeOffsets = l.TimeOffsets
	}
	if p := l.Personality; p != nil {
		c.plan.Guest.Linux.Personality = &specs.LinuxPersonality{Domain: p.Domain}
	}
	if p := l.MemoryPolicy; p != nil {
		c.plan.Guest.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: p.Mode, Nodes: p.Nodes, Flags: p.Flags}
	}
	c.warn.dropIf(l.MountLabel != "", "linux.mountLabel", "the guest has no SELinux policy")
	return nil
}

// guestSysctls returns the sysctls with names in the form of sysctl(8), with dots between
// elements.
func guestSysctls(l *specs.Linux) map[string]string {
	if len(l.Sysctl) == 0 {
		return nil
	}
	guest := make(map[string]string, len(l.Sysctl))
	for raw, value := range l.Sysctl {
		guest[sysctl.Name(raw)] = value
	}
	return guest
}

func (c *converter) shadow(spec *specs.Spec) {
	s := &c.plan.Shadow
	s.Namespaces, s.Face = shadowNamespaces(spec.Linux)
	s.NetDevices = netDevices(spec.Linux)
	s.Hostname = spec.Hostname
	s.Domainname = spec.Domainname
	s.CgroupsPath = spec.Linux.CgroupsPath
	s.Resources = spec.Linux.Resources
	s.OOMScoreAdj = spec.Process.OOMScoreAdj
	s.Args = spec.Process.Args
}

func (c *converter) otherPlatforms(spec *specs.Spec) {
	const why = "it is for another platform"
	c.warn.dropIf(spec.Solaris != nil, "solaris", why)
	c.warn.dropIf(spec.Windows != nil, "windows", why)
	c.warn.dropIf(spec.ZOS != nil, "zos", why)
	c.warn.dropIf(spec.FreeBSD != nil, "freebsd", why)
}
