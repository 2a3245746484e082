package libcontainer

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// capSets are the five capability sets as bit masks.
type capSets struct {
	Bounding    uint64 `json:"bounding,omitempty"`
	Effective   uint64 `json:"effective,omitempty"`
	Permitted   uint64 `json:"permitted,omitempty"`
	Inheritable uint64 `json:"inheritable,omitempty"`
	Ambient     uint64 `json:"ambient,omitempty"`
}

// capMask turns capability names into a mask. Capabilities that this package knows and the
// running kernel does not stay in the mask; the init stage leaves them out.
func capMask(names []string) (uint64, error) {
	var mask uint64
	for _, name := range names {
		short, ok := strings.CutPrefix(name, "CAP_")
		found := false
		for _, c := range capability.ListKnown() {
			if ok && short == strings.ToUpper(c.String()) {
				mask |= 1 << uint(c)
				found = true
				break
			}
		}
		if !found {
			return 0, fmt.Errorf("unknown capability %q", name)
		}
	}
	return mask, nil
}

// newCapSets returns the sets of c. As with runc, a process without capabilities in its spec
// has none.
func newCapSets(c *specs.LinuxCapabilities) (capSets, error) {
	var s capSets
	if c == nil {
		return s, nil
	}
	for _, set := range []struct {
		names []string
		mask  *uint64
	}{
		{c.Bounding, &s.Bounding},
		{c.Effective, &s.Effective},
		{c.Permitted, &s.Permitted},
		{c.Inheritable, &s.Inheritable},
		{c.Ambient, &s.Ambient},
	} {
		mask, err := capMask(set.names)
		if err != nil {
			return capSets{}, err
		}
		*set.mask = mask
	}
	return s, nil
}

var rlimits = [...]struct {
	name     string
	resource int
}{
	{"RLIMIT_CPU", unix.RLIMIT_CPU},
	{"RLIMIT_FSIZE", unix.RLIMIT_FSIZE},
	{"RLIMIT_DATA", unix.RLIMIT_DATA},
	{"RLIMIT_STACK", unix.RLIMIT_STACK},
	{"RLIMIT_CORE", unix.RLIMIT_CORE},
	{"RLIMIT_RSS", unix.RLIMIT_RSS},
	{"RLIMIT_NPROC", unix.RLIMIT_NPROC},
	{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE},
	{"RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK},
	{"RLIMIT_AS", unix.RLIMIT_AS},
	{"RLIMIT_LOCKS", unix.RLIMIT_LOCKS},
	{"RLIMIT_SIGPENDING", unix.RLIMIT_SIGPENDING},
	{"RLIMIT_MSGQUEUE", unix.RLIMIT_MSGQUEUE},
	{"RLIMIT_NICE", unix.RLIMIT_NICE},
	{"RLIMIT_RTPRIO", unix.RLIMIT_RTPRIO},
	{"RLIMIT_RTTIME", unix.RLIMIT_RTTIME},
}

func rlimitResource(name string) (int, error) {
	for i := range rlimits {
		if rlimits[i].name == name {
			return rlimits[i].resource, nil
		}
	}
	return 0, fmt.Errorf("invalid rlimit type: %s", name)
}

// defaultUmask is the umask that runc sets where the spec has none.
const defaultUmask = 0o022

// newProcessConfig checks a process of the spec and resolves names to numbers. It returns an
// error for a field that is not supported.
func newProcessConfig(p *specs.Process) (processConfig, error) {
	cfg := processConfig{
		Args:        p.Args,
		Cwd:         p.Cwd,
		UID:         p.User.UID,
		GID:         p.User.GID,
		Groups:      p.User.AdditionalGids,
		Umask:       defaultUmask,
		NoNewPrivs:  p.NoNewPrivileges,
		OOMScoreAdj: p.OOMScoreAdj,
		Terminal:    p.Terminal,
	}
	switch {
	case len(p.Args) == 0:
		return cfg, errors.New("args must not be empty")
	case !path.IsAbs(p.Cwd):
		return cfg, fmt.Errorf("cwd %q must be an absolute path", p.Cwd)
	case p.ApparmorProfile != "":
		return cfg, errors.New("process.apparmorProfile is not supported")
	case p.SelinuxLabel != "":
		return cfg, errors.New("process.selinuxLabel is not supported")
	}
	for _, arg := range p.Args {
		if strings.IndexByte(arg, 0) >= 0 {
			return cfg, fmt.Errorf("argument %q contains nul byte", arg)
		}
	}
	if p.User.Umask != nil {
		cfg.Umask = *p.User.Umask
	}
	if s := p.ConsoleSize; s != nil && p.Terminal {
		cfg.ConsoleSize = &unix.Winsize{Row: uint16(s.Height), Col: uint16(s.Width)}
	}
	var err error
	if cfg.Env, err = environment(p.Env); err != nil {
		return cfg, err
	}
	if cfg.Caps, err = newCapSets(p.Capabilities); err != nil {
		return cfg, err
	}
	if cfg.Rlimits, err = newRlimits(p.Rlimits); err != nil {
		return cfg, err
	}
	if cfg.Scheduler, err = newScheduler(p.Scheduler); err != nil {
		return cfg, err
	}
	if cfg.IOPriority, err = newIOPriority(p.IOPriority); err != nil {
		return cfg, err
	}
	cfg.Affinity, err = newAffinity(p.ExecCPUAffinity)
	return cfg, err
}

// environment checks the variables. Of variables with the same name it keeps the last value, at
// the place of the first.
func environment(env []string) ([]string, error) {
	place := make(map[string]int, len(env))
	out := make([]string, 0, len(env))
	for _, kv := range env {
		name, _, ok := strings.Cut(kv, "=")
		switch {
		case !ok:
			return nil, fmt.Errorf("invalid environment variable: missing '=': %q", kv)
		case name == "":
			return nil, errors.New("invalid environment variable: name cannot be empty")
		case strings.IndexByte(kv, 0) >= 0:
			return nil, fmt.Errorf("invalid environment variable %q: contains nul byte", name)
		}
		if i, ok := place[name]; ok {
			out[i] = kv
			continue
		}
		place[name] = len(out)
		out = append(out, kv)
	}
	return out, nil
}

func newRlimits(limits []specs.POSIXRlimit) ([]rlimitConfig, error) {
	var out []rlimitConfig
	seen := 0
	for _, l := range limits {
		resource, err := rlimitResource(l.Type)
		if err != nil {
			return nil, err
		}
		if seen&(1<<resource) != 0 {
			return nil, fmt.Errorf("rlimit %s is given twice", l.Type)
		}
		seen |= 1 << resource
		out = append(out, rlimitConfig{Resource: resource, Soft: l.Soft, Hard: l.Hard})
	}
	return out, nil
}

func newScheduler(s *specs.Scheduler) (*unix.SchedAttr, error) {
	if s == nil {
		return nil, nil
	}
	a := &unix.SchedAttr{
		Size:     unix.SizeofSchedAttr,
		Nice:     s.Nice,
		Priority: uint32(s.Priority),
		Runtime:  s.Runtime,
		Deadline: s.Deadline,
		Period:   s.Period,
	}
	switch s.Policy {
	case specs.SchedOther:
		a.Policy = unix.SCHED_NORMAL
	case specs.SchedFIFO:
		a.Policy = unix.SCHED_FIFO
	case specs.SchedRR:
		a.Policy = unix.SCHED_RR
	case specs.SchedBatch:
		a.Policy = unix.SCHED_BATCH
	case specs.SchedIdle:
		a.Policy = unix.SCHED_IDLE
	case specs.SchedDeadline:
		a.Policy = unix.SCHED_DEADLINE
	default:
		return nil, fmt.Errorf("invalid scheduler policy: %s", s.Policy)
	}
	for _, f := range s.Flags {
		switch f {
		case specs.SchedFlagResetOnFork:
			a.Flags |= unix.SCHED_FLAG_RESET_ON_FORK
		case specs.SchedFlagReclaim:
			a.Flags |= unix.SCHED_FLAG_RECLAIM
		case specs.SchedFlagDLOverrun:
			a.Flags |= unix.SCHED_FLAG_DL_OVERRUN
		case specs.SchedFlagKeepPolicy:
			a.Flags |= unix.SCHED_FLAG_KEEP_POLICY
		case specs.SchedFlagKeepParams:
			a.Flags |= unix.SCHED_FLAG_KEEP_PARAMS
		case specs.SchedFlagUtilClampMin:
			a.Flags |= unix.SCHED_FLAG_UTIL_CLAMP_MIN
		case specs.SchedFlagUtilClampMax:
			a.Flags |= unix.SCHED_FLAG_UTIL_CLAMP_MAX
		default:
			return nil, fmt.Errorf("invalid scheduler flag: %s", f)
		}
	}
	return a, nil
}

// newIOPriority packs class and level as ioprio_set(2) takes them.
func newIOPriority(p *specs.LinuxIOPriority) (*int, error) {
	if p == nil {
		return nil, nil
	}
	const classShift = 13
	if p.Priority < 0 || p.Priority > 7 {
		return nil, fmt.Errorf("invalid ioPriority.Priority: %d", p.Priority)
	}
	var class int
	switch p.Class {
	case specs.IOPRIO_CLASS_RT:
		class = 1
	case specs.IOPRIO_CLASS_BE:
		class = 2
	case specs.IOPRIO_CLASS_IDLE:
		class = 3
	default:
		return nil, fmt.Errorf("invalid ioPriority.Class: %s", p.Class)
	}
	v := class<<classShift | p.Priority
	return &v, nil
}

func newPersonality(p *specs.LinuxPersonality) (*uintptr, error) {
	if p == nil {
		return nil, nil
	}
	if len(p.Flags) > 0 {
		return nil, fmt.Errorf("invalid personality flag: %s", p.Flags[0])
	}
	var v uintptr
	switch p.Domain {
	case specs.PerLinux:
	case specs.PerLinux32:
		v = 0x0008
	default:
		return nil, fmt.Errorf("invalid personality domain: %s", p.Domain)
	}
	return &v, nil
}

// newMounts parses the options of the mounts. It returns an error for what is not supported.
func newMounts(mounts []specs.Mount) ([]mountConfig, error) {
	var out []mountConfig
	for i, m := range mounts {
		cfg := mountConfig{
			Source:       m.Source,
			Destination:  path.Clean("/" + m.Destination),
			Type:         m.Type,
			mountOptions: parseMountOptions(m.Options),
		}
		switch {
		case m.Destination == "" || cfg.Destination == "/":
			return nil, fmt.Errorf("invalid mount destination %q", m.Destination)
		case cfg.IDMap || len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0:
			return nil, fmt.Errorf("mounts[%d]: id-mapped mounts are not supported", i)
		case m.Type == "bind":
			cfg.Flags |= unix.MS_BIND
		case m.Type == "cgroup" || m.Type == "cgroup2":
			// These options belong to cgroup version 1 or change the whole hierarchy.
			cfg.Type, cfg.Data = "cgroup2", ""
		}
		if err := checkProcDestination(&cfg); err != nil {
			return nil, err
		}
		out = append(out, cfg)
	}
	return out, nil
}

// checkProcDestination refuses a mount over the files of /proc by which the init stage sets
// labels and limits. A bind on /proc itself is checked later, when its source is open.
func checkProcDestination(m *mountConfig) error {
	dest := m.Destination
	if dest == "/proc" && m.Type != "proc" && m.Flags&unix.MS_BIND == 0 {
		return fmt.Errorf("%q cannot be mounted because it is not of type proc", dest)
	}
	if !strings.HasPrefix(dest, "/proc/") {
		return nil
	}
	switch dest {
	// lxcfs and similar programs replace these files with the container's own view.
	case "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps",
		"/proc/uptime", "/proc/loadavg", "/proc/slabinfo", "/proc/net/dev",
		"/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled":
		return nil
	}
	return fmt.Errorf("%q cannot be mounted because it is inside /proc", dest)
}

func newDevices(devices []specs.LinuxDevice) ([]deviceConfig, error) {
	var out []deviceConfig
	for _, d := range devices {
		cfg := deviceConfig{Path: path.Clean("/" + d.Path), Mode: 0o666}
		if cfg.Path == "/dev/ptmx" {
			continue // a link into the container's devpts
		}
		if d.FileMode != nil {
			cfg.Mode = uint32(*d.FileMode) & 0o7777
		}
		if d.UID != nil {
			cfg.UID = *d.UID
		}
		if d.GID != nil {
			cfg.GID = *d.GID
		}
		switch d.Type {
		case "c", "u":
			cfg.Mode |= unix.S_IFCHR
		case "b":
			cfg.Mode |= unix.S_IFBLK
		case "p":
			cfg.Mode |= unix.S_IFIFO
		default:
			return nil, fmt.Errorf("invalid type %q of device %s", d.Type, d.Path)
		}
		if d.Type != "p" {
			if d.Major < 0 || d.Major >= 1<<12 || d.Minor < 0 || d.Minor >= 1<<20 {
				return nil, fmt.Errorf("invalid number %d:%d of device %s", d.Major, d.Minor, d.Path)
			}
			cfg.Dev = unix.Mkdev(uint32(d.Major), uint32(d.Minor))
		}
		out = append(out, cfg)
	}
	return out, nil
}

// timeOffsets returns the text to write to /proc/PID/timens_offsets.
func timeOffsets(offsets map[string]specs.LinuxTimeOffset) (string, error) {
	var b strings.Builder
	for clock, o := range offsets {
		if clock != "monotonic" && clock != "boottime" {
			return "", fmt.Errorf("invalid clock %q of timeOffsets", clock)
		}
		b.WriteString(clock + " " + strconv.FormatInt(o.Secs, 10) + " " + strconv.FormatUint(uint64(o.Nanosecs), 10) + "\n")
	}
	return b.String(), nil
}
