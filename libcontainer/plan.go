package libcontainer

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Config is one container.
type Config struct {
	ID string
	// Spec's paths (root.path, the sources of binds, the namespaces' paths) are
	// the caller's own. What it asks for that this package has not is an error of
	// Create. Of its hooks createContainer and startContainer are run; the others
	// belong to the runtime's namespace and are the caller's.
	Spec *specs.Spec
	// Seccomp is the filter for all processes of the container; nil: none. The
	// one in Spec, which is not compiled, is an error.
	Seccomp *SeccompFilter
	// CgroupPath is the container's cgroup below CgroupRoot, like "/husk/abc".
	// Create makes it and Destroy removes it. Empty: no cgroup, and then no
	// resources, statistics or pause.
	CgroupPath string
	// CgroupRoot is the mount point of cgroup2; empty: DefaultCgroupRoot.
	CgroupRoot string
	// InitArgs is the command of the init stage, whose first element is executed
	// with InitArg in its place in argv; empty: this program.
	InitArgs []string
	// Prepared, if not nil, becomes the container where it fits, in its own
	// cgroup instead of CgroupPath; else it is discarded. If Spec has a cgroupsPath
	// and no cgroup namespace it is moved to CgroupPath.
	Prepared *Prepared
	// Bundle is what hooks are told of the bundle's directory.
	Bundle string
	// BareNewlines keeps the terminal, where there is one, from making \r\n of \n.
	BareNewlines bool
	// Descriptors are the process's from number 3 on. They stay the caller's to close.
	Descriptors []*os.File
	// NoPivot enters the rootfs without pivot_root, which is done in any case
	// where the root is an initramfs's: the caller's root stays mounted, hidden
	// below the container's.
	NoPivot bool
}

// plan is a Config that has been checked and taken apart.
type plan struct {
	init       initConfig
	settings   []setting
	devices    bpfProgram  // which devices the container may use
	clone      uintptr     // CLONE_NEW* of the namespaces to make
	joins      []namespace // to join before the fork
	userNS     *userNS     // nil: the caller's
	base       []baseMount // of a container with a user namespace
	timeNS     *string     // make a time namespace, with these offsets
	initArgs   []string    // of the first stage
	execArgs   []string    // of those of Exec
	cgroupRoot string
	// descriptors are the first process's.
	descriptors []*os.File
}

type namespace struct {
	path string
	flag int
}

func namespaceFlag(t specs.LinuxNamespaceType) int {
	switch t {
	case specs.PIDNamespace:
		return unix.CLONE_NEWPID
	case specs.NetworkNamespace:
		return unix.CLONE_NEWNET
	case specs.MountNamespace:
		return unix.CLONE_NEWNS
	case specs.IPCNamespace:
		return unix.CLONE_NEWIPC
	case specs.UTSNamespace:
		return unix.CLONE_NEWUTS
	case specs.CgroupNamespace:
		return unix.CLONE_NEWCGROUP
	case specs.TimeNamespace:
		return unix.CLONE_NEWTIME
	case specs.UserNamespace:
		return unix.CLONE_NEWUSER
	}
	return 0
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
		flag := namespaceFlag(ns.Type)
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
			p.init.CgroupNS = true // made by the stage, once it is in its cgroup
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
	has := func(t specs.LinuxNamespaceType) bool { return seen&namespaceFlag(t) != 0 }
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
	p.init.Process.Affinity = nil // for those of Exec only
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
