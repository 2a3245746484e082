package libcontainer

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/linux/namespaces"
)

// Config describes one container.
type Config struct {
	ID string
	// Spec is the container's OCI configuration. root.path, the sources of binds and the paths
	// of namespaces are paths of the caller. Create returns an error for each field that this
	// package does not support. Of the hooks only createContainer and startContainer are run;
	// the caller runs the others, which belong to the runtime's namespace.
	Spec *specs.Spec
	// Seccomp is the filter for all processes of the container; nil: none. A filter in
	// Spec.Linux.Seccomp is an error, because this package does not compile it.
	Seccomp *SeccompFilter
	// CgroupPath is the path of the container's cgroup below CgroupRoot, such as "/husk/abc".
	// Create makes the cgroup and Destroy removes it. If it is empty the container has no
	// cgroup, and so no limits, statistics or pause.
	CgroupPath string
	// CgroupRoot is the mount point of cgroup2; empty: DefaultCgroupRoot.
	CgroupRoot string
	// InitArgs is the command of the init stage. Its first element is the program; in argv
	// InitArg takes its place. Empty: this program.
	InitArgs []string
	// Prepared, if not nil, becomes the container if it fits, and is discarded otherwise. The
	// container keeps the cgroup of Prepared and CgroupPath is not made, except if Spec has a
	// cgroupsPath and no cgroup namespace: then it is moved to CgroupPath.
	Prepared *Prepared
	// Bundle is the bundle directory that hooks find in the container's state.
	Bundle string
	// BareNewlines: the terminal, if there is one, does not write \r\n for \n.
	BareNewlines bool
	// Descriptors become the first process's descriptors from number 3 on. The caller closes
	// them.
	Descriptors []*os.File
	// NoPivot: enter the rootfs without pivot_root, as is always done where the root is an
	// initramfs. The caller's root then stays mounted, hidden below the container's.
	NoPivot bool
}

// plan is a Config after it has been checked and resolved. It does not change after newPlan.
type plan struct {
	init       initConfig
	settings   []setting
	devices    bpfProgram  // which devices the container may use
	clone      uintptr     // CLONE_NEW* of the namespaces to make
	joins      []namespace // joined before the fork
	userNS     *userNS     // nil: the container stays in the caller's
	base       []baseMount // set only with a user namespace
	timeNS     *string     // offsets of the new time namespace; nil: none is made
	initArgs   []string    // command of the first process's init stage
	execArgs   []string    // command of the init stages of Exec
	cgroupRoot string
	// descriptors are passed to the first process.
	descriptors []*os.File
}

type namespace struct {
	path string
	flag int
}

func newPlan(cfg *Config) (*plan, error) {
	spec := cfg.Spec
	switch {
	case spec == nil || spec.Process == nil:
		return nil, errors.New("process property must not be empty")
	case spec.Root == nil || spec.Root.Path == "":
		return nil, errors.New("root property must not be empty")
	case spec.Linux == nil:
		return nil, errors.New("linux property must not be empty")
	}
	if err := checkSupported(spec.Linux); err != nil {
		return nil, err
	}
	initArgs := defaultInitArgs(cfg.InitArgs)
	p := &plan{initArgs: initArgs, execArgs: initArgs, cgroupRoot: defaultCgroupRoot(cfg.CgroupRoot), descriptors: cfg.Descriptors}
	for _, f := range []func(*Config) error{p.namespaces, p.process, p.rootfs, p.resources, p.state} {
		if err := f(cfg); err != nil {
			return nil, err
		}
	}
	if p.userNS != nil {
		p.init.UserNS = true
		p.useBase()
	}
	return p, nil
}

func checkSupported(l *specs.Linux) error {
	var field string
	switch {
	case l.Seccomp != nil:
		field = "seccomp"
	case l.MountLabel != "":
		field = "mountLabel"
	case l.IntelRdt != nil:
		field = "intelRdt"
	case len(l.NetDevices) > 0:
		field = "netDevices"
	default:
		return nil
	}
	return fmt.Errorf("linux.%s is not supported", field)
}

func (p *plan) namespaces(cfg *Config) error {
	seen := 0
	for _, ns := range cfg.Spec.Linux.Namespaces {
		flag := namespaces.Flag(ns.Type)
		switch {
		case flag == 0:
			return fmt.Errorf("namespace %q does not exist", ns.Type)
		case seen&flag != 0:
			return fmt.Errorf("malformed spec file: duplicated ns %q", ns)
		case ns.Path != "" && flag&(unix.CLONE_NEWNS|unix.CLONE_NEWTIME|unix.CLONE_NEWUSER) != 0:
			return fmt.Errorf("joining a %s namespace by path is not supported", ns.Type)
		}
		seen |= flag
		if ns.Path != "" {
			p.joins = append(p.joins, namespace{ns.Path, flag})
			continue
		}
		switch ns.Type {
		case specs.CgroupNamespace:
			p.init.CgroupNS = true // the stage makes it when it is in its cgroup
		case specs.TimeNamespace:
			offsets, err := timeOffsets(cfg.Spec.Linux.TimeOffsets)
			if err != nil {
				return err
			}
			p.timeNS = &offsets
		case specs.UserNamespace:
			var err error
			if p.userNS, err = newUserNS(cfg.Spec.Linux); err != nil {
				return err
			}
			p.clone |= unix.CLONE_NEWUSER
		default:
			p.clone |= uintptr(flag)
		}
	}
	p.init.Loopback = p.clone&unix.CLONE_NEWNET != 0
	has := func(t specs.LinuxNamespaceType) bool { return seen&namespaces.Flag(t) != 0 }
	switch {
	case !has(specs.MountNamespace):
		return errors.New("a container without a mount namespace is not supported")
	case cfg.Spec.Hostname != "" && !has(specs.UTSNamespace):
		return errors.New("unable to set hostname without a private UTS namespace")
	case cfg.Spec.Domainname != "" && !has(specs.UTSNamespace):
		return errors.New("unable to set domainname without a private UTS namespace")
	case len(cfg.Spec.Linux.TimeOffsets) > 0 && p.timeNS == nil:
		return errors.New("time namespace offsets specified, but time namespace isn't enabled in the config")
	case len(cfg.Spec.Linux.UIDMappings)+len(cfg.Spec.Linux.GIDMappings) > 0 && p.userNS == nil:
		return errors.New("user namespace mappings specified, but user namespace isn't enabled in the config")
	}
	p.init.Hostname, p.init.Domainname = cfg.Spec.Hostname, cfg.Spec.Domainname
	var err error
	p.init.Sysctl, err = newSysctl(cfg.Spec.Linux.Sysctl, has)
	return err
}

func (p *plan) process(cfg *Config) error {
	var err error
	if p.init.Process, err = newProcessConfig(cfg.Spec.Process); err != nil {
		return err
	}
	p.init.Process.Affinity = nil // applies to exec'd processes only
	p.init.Process.BareNewlines = cfg.BareNewlines
	if err := p.userNS.check(&p.init.Process); err != nil {
		return err
	}
	if err := checkSeccomp(cfg.Seccomp); err != nil {
		return err
	}
	p.init.Process.Seccomp = cfg.Seccomp
	if p.init.Process.Personality, err = newPersonality(cfg.Spec.Linux.Personality); err != nil {
		return err
	}
	p.init.Process.MemoryPolicy, err = newMemoryPolicy(cfg.Spec.Linux.MemoryPolicy)
	return err
}

func (p *plan) rootfs(cfg *Config) error {
	spec := cfg.Spec
	dir, err := filepath.Abs(spec.Root.Path)
	if err != nil {
		return fmt.Errorf("invalid rootfs: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("invalid rootfs: %w", err)
	}
	if !st.IsDir() || dir == "/" {
		return fmt.Errorf("invalid rootfs: %s is not a directory of its own", dir)
	}
	propagation, ok := parsePropagation(spec.Linux.RootfsPropagation)
	if !ok {
		return fmt.Errorf("rootfsPropagation=%s is not supported", spec.Linux.RootfsPropagation)
	}
	p.init.Root = rootConfig{
		Dir:         dir,
		Readonly:    spec.Root.Readonly,
		Propagation: propagation,
		NoPivot:     cfg.NoPivot,
		OwnDev:      true,
	}
	if p.init.Mounts, err = newMounts(spec.Mounts); err != nil {
		return err
	}
	for i := range p.init.Mounts {
		if m := &p.init.Mounts[i]; m.Destination == "/dev" && m.Flags&unix.MS_BIND != 0 {
			p.init.Root.OwnDev = false
		}
	}
	if p.init.Devices, err = newDevices(spec.Linux.Devices); err != nil {
		return err
	}
	p.init.Masked, p.init.Readonly = spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths
	return nil
}

func (p *plan) resources(cfg *Config) error {
	var err error
	if p.settings, err = settings(cfg.Spec.Linux.Resources); err != nil {
		return err
	}
	if len(p.settings) > 0 && cfg.CgroupPath == "" {
		return errors.New("linux.resources are set, but the container has no cgroup")
	}
	var rules []specs.LinuxDeviceCgroup
	if r := cfg.Spec.Linux.Resources; r != nil {
		rules = r.Devices
	}
	switch {
	case cfg.CgroupPath != "":
		p.init.CgroupDir = filepath.Join(p.cgroupRoot, filepath.Clean("/"+cfg.CgroupPath))
		p.devices, err = deviceFilter(rules)
		return err
	case len(rules) > 0:
		return errors.New("linux.resources.devices are set, but the container has no cgroup")
	}
	return nil
}

func (p *plan) state(cfg *Config) error {
	h := cfg.Spec.Hooks
	if h == nil || len(h.CreateContainer)+len(h.StartContainer) == 0 {
		return nil
	}
	p.init.Hooks = containerHooks{CreateContainer: h.CreateContainer, StartContainer: h.StartContainer}
	var err error
	p.init.State, err = json.Marshal(specs.State{
		Version:     specs.Version,
		ID:          cfg.ID,
		Bundle:      cfg.Bundle,
		Annotations: cfg.Spec.Annotations,
	})
	if err != nil {
		return fmt.Errorf("encode state for hooks: %w", err)
	}
	return nil
}
