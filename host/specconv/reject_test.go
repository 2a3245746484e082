package specconv

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

// addMount returns an edit that appends a mount. In docker.json its index is 12.
func addMount(m specs.Mount) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) }
}

func addDevice(d specs.LinuxDevice) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Linux.Devices = append(s.Linux.Devices, d) }
}

func annotate(key, value string) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Annotations = map[string]string{key: value} }
}

func without(t specs.LinuxNamespaceType) func(*specs.Spec) {
	return func(s *specs.Spec) {
		var kept []specs.LinuxNamespace
		for _, ns := range s.Linux.Namespaces {
			if ns.Type != t {
				kept = append(kept, ns)
			}
		}
		s.Linux.Namespaces = kept
		if t == specs.UTSNamespace {
			s.Hostname = ""
		}
	}
}

func setSysctl(key string) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{key: "1"} }
}

func memory(m specs.LinuxMemory) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Linux.Resources.Memory = &m }
}

func cpu(c specs.LinuxCPU) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Linux.Resources.CPU = &c }
}

func both(a, b func(*specs.Spec)) func(*specs.Spec) {
	return func(s *specs.Spec) { a(s); b(s) }
}

type rejection struct {
	edit func(*specs.Spec)
	want string // the complete error
}

// testRejections applies each edit to Docker's config, which must then be refused with exactly
// this one line.
func testRejections(t *testing.T, cases []rejection) {
	t.Helper()
	if _, err := Convert(testEnv(), readSpec(t, "docker.json")); err != nil {
		t.Fatalf("the config to be edited is refused already: %v", err)
	}
	for _, c := range cases {
		t.Run(c.want, func(t *testing.T) {
			spec := readSpec(t, "docker.json")
			c.edit(spec)
			_, err := Convert(testEnv(), spec)
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Error("more than one line")
			}
		})
	}
}

func TestRejectTop(t *testing.T) {
	testRejections(t, []rejection{
		{func(s *specs.Spec) { s.Version = "" }, "ociVersion: must not be empty"},
		{func(s *specs.Spec) { s.Version = "2.0.0" }, `ociVersion: "2.0.0" is not a version 1.x.y of the OCI runtime specification`},
		{func(s *specs.Spec) { s.Version = "1.0" }, `ociVersion: "1.0" is not a version 1.x.y of the OCI runtime specification`},
		{func(s *specs.Spec) { s.Version = "1.0.0\n" }, `ociVersion: "1.0.0\n" is not a version 1.x.y of the OCI runtime specification`},
		{func(s *specs.Spec) { s.Root = nil }, "root must be specified"},
		{func(s *specs.Spec) { s.Root.Path = "" }, "root.path: must not be empty"},
		{func(s *specs.Spec) { s.Root.Path = "/nosuchroot" }, "invalid rootfs: stat /nosuchroot: no such file or directory"},
		{func(s *specs.Spec) { s.Root.Path = "file" }, "invalid rootfs: /bundle/file is not a directory"},
		{func(s *specs.Spec) { s.Root.Path = "/srv/symlink" }, `invalid rootfs: root.path: "/srv/symlink": not an absolute path, or a symlink`},
		{func(s *specs.Spec) { s.Root.Path = "symlink/rootfs" }, `invalid rootfs: root.path: "/bundle/symlink/rootfs": not an absolute path, or a symlink`},
		{func(s *specs.Spec) { s.Root.Path = "a\x00b" }, `root.path: "a\x00b" contains a NUL byte`},
		{func(s *specs.Spec) { s.Linux = nil }, "linux: must be specified: a network namespace is required"},
		{func(s *specs.Spec) { s.VM = &specs.VM{} }, "vm: not supported: the virtual machine is described by husk's settings file and annotations"},
		{both(without(specs.UTSNamespace), func(s *specs.Spec) { s.Hostname = "h" }), "hostname: unable to set hostname without a private UTS namespace"},
		{both(without(specs.UTSNamespace), func(s *specs.Spec) { s.Domainname = "h" }), "domainname: unable to set domainname without a private UTS namespace"},
		{func(s *specs.Spec) { s.Hostname = strings.Repeat("h", 65) }, `hostname: "` + strings.Repeat("h", 65) + `" is longer than 64 bytes`},
		{func(s *specs.Spec) { s.Domainname = strings.Repeat("h", 1<<20) }, `domainname: "` + strings.Repeat("h", 200) + `"... is longer than 64 bytes`},
		{annotate("org.huskvm.network", "host"), `annotations["org.huskvm.network"]: "host" is not "none"`},
		{annotate("org.huskvm.pid", "host"), `annotations["org.huskvm.pid"]: "host" is not "private"`},
		{annotate("org.huskvm.ipc", "host"), `annotations["org.huskvm.ipc"]: "host" is not "private"`},
		{annotate("org.huskvm.memory_mib", "127"), `annotations["org.huskvm.memory_mib"]: "127" is not a whole number between 128 and 1048576`},
		{annotate("org.huskvm.memory_mib", "1g"), `annotations["org.huskvm.memory_mib"]: "1g" is not a whole number between 128 and 1048576`},
		{annotate("org.huskvm.vcpus", "0"), `annotations["org.huskvm.vcpus"]: "0" is not a whole number between 1 and 255`},
		{annotate("org.huskvm.nics", "9"), `annotations["org.huskvm.nics"]: "9" is not a whole number between 1 and 8`},
		{annotate("org.huskvm.accel", "auto"), `annotations["org.huskvm.accel"]: "auto" is neither "kvm" nor "tcg"`},
		{annotate("org.huskvm.anti_spoofing", "auto"), `annotations["org.huskvm.anti_spoofing"]: "auto" is not "off"`},
		{annotate("org.huskvm.uncarried_filters", "true"), `annotations["org.huskvm.uncarried_filters"]: "true" is not "accept"`},
		{annotate("org.huskvm.template_scope", "host"), `annotations["org.huskvm.template_scope"]: "host" is neither "container" nor "tenant:NAME", NAME of 1 to 255 bytes`},
		{annotate("org.huskvm.template_scope", "tenant:"), `annotations["org.huskvm.template_scope"]: "tenant:" is neither "container" nor "tenant:NAME", NAME of 1 to 255 bytes`},
		{annotate("org.huskvm.vcpu", "1"), `annotations["org.huskvm.vcpu"]: husk knows no such annotation`},
		{annotate("a", "b\x00"), `annotations["a"]: "b\x00" contains a NUL byte`},
	})
}

func TestRejectProcess(t *testing.T) {
	edit := func(f func(*specs.Process)) func(*specs.Spec) {
		return func(s *specs.Spec) { f(s.Process) }
	}
	testRejections(t, []rejection{
		{func(s *specs.Spec) { s.Process = nil }, "process property must not be empty"},
		{edit(func(p *specs.Process) { p.Args = nil }), "process.args: args must not be empty"},
		{edit(func(p *specs.Process) { p.Args = []string{"a", "b\x00c"} }), `process.args[1]: "b\x00c" contains a NUL byte`},
		{edit(func(p *specs.Process) { p.Cwd = "" }), "process.cwd: Cwd property must not be empty"},
		{edit(func(p *specs.Process) { p.Cwd = "tmp" }), "process.cwd: Cwd must be an absolute path"},
		{edit(func(p *specs.Process) { p.Env = []string{"A=1", "FOO"} }), `process.env[1]: invalid environment variable: "FOO"`},
		{edit(func(p *specs.Process) { p.Env = []string{"=x"} }), `process.env[0]: environment variable name can't be empty: "=x"`},
		{edit(func(p *specs.Process) { p.Env = []string{"A=\x00"} }), `process.env[0]: "A=\x00" contains a NUL byte`},
		{edit(func(p *specs.Process) { p.User.UID = 1<<32 - 1 }), "process.user.uid: 4294967295 is not a user id"},
		{edit(func(p *specs.Process) { p.User.GID = 1<<32 - 1 }), "process.user.gid: 4294967295 is not a group id"},
		{edit(func(p *specs.Process) { p.User.AdditionalGids = []uint32{1, 1<<32 - 1} }), "process.user.additionalGids[1]: 4294967295 is not a group id"},
		{edit(func(p *specs.Process) { p.User.AdditionalGids = make([]uint32, 65537) }), "process.user.additionalGids: 65537 groups are more than the kernel's 65536"},
		{edit(func(p *specs.Process) { p.User.Umask = ptr(uint32(0o1000)) }), "process.user.umask: 01000 is not between 0 and 0777"},
		{edit(func(p *specs.Process) { p.OOMScoreAdj = ptr(1001) }), "process.oomScoreAdj: 1001 is not between -1000 and 1000"},
		{edit(func(p *specs.Process) { p.Capabilities.Bounding = []string{"CAP_X"} }), `process.capabilities.bounding[0]: unknown capability "CAP_X"`},
		{edit(func(p *specs.Process) { p.Capabilities.Effective = []string{"cap_kill"} }), `process.capabilities.effective[0]: unknown capability "cap_kill"`},
		{edit(func(p *specs.Process) { p.Capabilities.Inheritable = []string{""} }), `process.capabilities.inheritable[0]: unknown capability ""`},
		{edit(func(p *specs.Process) { p.Capabilities.Permitted = []string{"CAP_KILL", "KILL"} }), `process.capabilities.permitted[1]: unknown capability "KILL"`},
		{edit(func(p *specs.Process) { p.Capabilities.Ambient = []string{"ALL"} }), `process.capabilities.ambient[0]: unknown capability "ALL"`},
		{edit(func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_TEST"}} }), `process.rlimits[0].type: wrong rlimit value: "RLIMIT_TEST"`},
		{edit(func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU"}, {Type: "RLIMIT_CPU"}} }), "process.rlimits[1].type: duplicate rlimit RLIMIT_CPU"},
		{edit(func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Soft: 2, Hard: 1}} }), "process.rlimits[0].soft: 2 is above the hard limit 1 of RLIMIT_CPU"},
		{edit(func(p *specs.Process) { p.ConsoleSize.Width = 65536 }), "process.consoleSize: 50 rows of 65536 columns: a terminal has at most 65535 of each"},
		{edit(func(p *specs.Process) { p.Scheduler = &specs.Scheduler{Policy: "SCHED_X"} }), `process.scheduler.policy: invalid scheduler policy: "SCHED_X"`},
		{edit(func(p *specs.Process) { p.Scheduler = &specs.Scheduler{Policy: "SCHED_OTHER", Nice: 20} }), "process.scheduler.nice: 20 is not between -20 and 19"},
		{edit(func(p *specs.Process) { p.Scheduler = &specs.Scheduler{Policy: "SCHED_FIFO", Priority: 100} }), "process.scheduler.priority: 100 is not between 0 and 99"},
		{edit(func(p *specs.Process) {
			p.Scheduler = &specs.Scheduler{Policy: "SCHED_OTHER", Flags: []specs.LinuxSchedulerFlag{"X"}}
		}), `process.scheduler.flags[0]: invalid scheduler flag: "X"`},
		{edit(func(p *specs.Process) { p.IOPriority = &specs.LinuxIOPriority{} }), `process.ioPriority.class: invalid ioPriority.Class: ""`},
		{edit(func(p *specs.Process) {
			p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}
		}), "process.ioPriority.priority: invalid ioPriority.Priority: 8"},
		{edit(func(p *specs.Process) { p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0-"} }), `process.execCPUAffinity.initial: invalid CPU affinity "0-": not a list such as 0-2,7 of numbers up to 1023`},
		{edit(func(p *specs.Process) { p.ExecCPUAffinity = &specs.CPUAffinity{Final: "1024"} }), `process.execCPUAffinity.final: invalid CPU affinity "1024": not a list such as 0-2,7 of numbers up to 1023`},
	})
}

func TestRejectMounts(t *testing.T) {
	const initError = "unable to start container process: error during container init: error mounting "
	bind := func(source, dest string, options ...string) func(*specs.Spec) {
		return addMount(specs.Mount{Destination: dest, Source: source, Type: "bind", Options: append(options, "bind")})
	}
	one := []specs.LinuxIDMapping{{Size: 1}}
	idmapped := func(kind, source string, uids, gids []specs.LinuxIDMapping) func(*specs.Spec) {
		return addMount(specs.Mount{Destination: "/x", Source: source, Type: kind, UIDMappings: uids, GIDMappings: gids})
	}
	const supported = " is not supported: supported are bind, overlay, proc, sysfs, tmpfs, devpts, mqueue, cgroup, cgroup2"
	testRejections(t, []rejection{
		{bind("/nosuchsrc", "/x"), initError + `"/nosuchsrc" to rootfs at "/x": stat /nosuchsrc: no such file or directory`},
		{bind("/srv/broken", "/dev/shm"), initError + `"/srv/broken" to rootfs at "/dev/shm": statfs /srv/broken: input/output error`},
		{bind("", "/x"), "mounts[12].source: must not be empty"},
		{bind("/tmp", ""), "mounts[12].destination: must not be empty"},
		{bind("/tmp", "/"), `mounts[12].destination: "/" is the rootfs itself`},
		{bind("/tmp", "x/../.."), `mounts[12].destination: "x/../.." is the rootfs itself`},
		{bind("/tmp", "/proc"), `mounts[12].destination: "/proc" cannot be mounted because it is not of type proc`},
		{bind("/tmp", "/a/../proc/sys"), `mounts[12].destination: "/proc/sys" cannot be mounted because it is inside /proc`},
		{bind("/tmp", "/x", "idmap"), "mounts[12]: id-mapped mounts must have both uid and gid mappings specified"},
		{bind("/tmp", "/x", "ridmap"), "mounts[12]: id-mapped mounts must have both uid and gid mappings specified"},
		{idmapped("bind", "/tmp", one, nil), "mounts[12]: id-mapped mounts must have both uid and gid mappings specified"},
		{idmapped("bind", "/tmp", nil, one), "mounts[12]: id-mapped mounts must have both uid and gid mappings specified"},
		{idmapped("tmpfs", "tmpfs", one, one), "mounts[12]: id-mapped mounts are only supported for bind-mounts"},
		{idmapped("bind", "/tmp", one, []specs.LinuxIDMapping{{}}), "mounts[12].gidMappings[0].size: must not be 0"},
		{idmapped("bind", "/dev/null", one, one), "mounts[12]: a device cannot be id-mapped: the node is the guest's own"},
		{bind("/dev/kvm", "/dev/kvm"), `mounts[12].source: "/dev/kvm" is a device of the host (c 10:232): not supported yet`},
		{bind("/dev/sda", "/disk"), `mounts[12].source: "/dev/sda" is a device of the host (b 8:0): not supported yet`},
		{bind("/run/irregular", "/x"), `mounts[12].source: "/run/irregular" is neither a file nor a directory`},
		{addMount(specs.Mount{Destination: "/x", Type: "btrfs"}), `mounts[12].type: "btrfs"` + supported},
		{addMount(specs.Mount{Destination: "/x", Type: "ext4", Source: "/dev/sda1"}), `mounts[12].type: "ext4"` + supported},
		{addMount(specs.Mount{Destination: "/x"}), `mounts[12].type: ""` + supported},
		{addMount(specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"size=1\x00"}}), `mounts[12].options[0]: "size=1\x00" contains a NUL byte`},
	})
}

func TestRejectNamespaces(t *testing.T) {
	add := func(ns specs.LinuxNamespace) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, ns) }
	}
	mapping := []specs.LinuxIDMapping{{Size: 1}}
	user := func(ns specs.LinuxNamespace, uids, gids []specs.LinuxIDMapping) func(*specs.Spec) {
		return func(s *specs.Spec) {
			ns.Type = specs.UserNamespace
			add(ns)(s)
			s.Linux.UIDMappings, s.Linux.GIDMappings = uids, gids
		}
	}
	offset := func(clock string, o specs.LinuxTimeOffset) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{clock: o} }
	}
	testRejections(t, []rejection{
		{add(specs.LinuxNamespace{Type: "foo"}), `linux.namespaces[6].type: namespace "foo" does not exist`},
		{add(specs.LinuxNamespace{Type: "pid", Path: "/p"}), `linux.namespaces[6].type: malformed spec file: duplicated ns "pid"`},
		{add(specs.LinuxNamespace{Type: "time", Path: "p"}), `linux.namespaces[6].path: "p" is not an absolute path`},
		{user(specs.LinuxNamespace{}, nil, nil), "linux.namespaces[6]: user namespaces enabled, but no namespace path to join nor mappings to apply specified"},
		{func(s *specs.Spec) { s.Linux.UIDMappings = mapping }, "linux.uidMappings: user namespace mappings specified, but user namespace isn't enabled in the config"},
		{func(s *specs.Spec) { s.Linux.GIDMappings = mapping }, "linux.gidMappings: user namespace mappings specified, but user namespace isn't enabled in the config"},
		{user(specs.LinuxNamespace{}, mapping, nil), "linux.gidMappings: user namespaces enabled, but no gid mappings found"},
		{user(specs.LinuxNamespace{}, nil, mapping), "linux.uidMappings: user namespaces enabled, but no uid mappings found"},
		{user(specs.LinuxNamespace{}, []specs.LinuxIDMapping{{ContainerID: 1, Size: 1}}, mapping), "linux.uidMappings: user namespaces enabled, but no mapping found for uid 0"},
		{user(specs.LinuxNamespace{}, mapping, []specs.LinuxIDMapping{{ContainerID: 1, Size: 1}}), "linux.gidMappings: user namespaces enabled, but no mapping found for gid 0"},
		{user(specs.LinuxNamespace{}, []specs.LinuxIDMapping{{}}, mapping), "linux.uidMappings[0].size: must not be 0"},
		{user(specs.LinuxNamespace{}, mapping, []specs.LinuxIDMapping{{HostID: 1 << 31, Size: 1 << 31}}), "linux.gidMappings[0]: 2147483648 ids from 2147483648 on are beyond the last id, 4294967294"},
		{user(specs.LinuxNamespace{}, []specs.LinuxIDMapping{{ContainerID: 2, Size: 1<<32 - 2}}, mapping), "linux.uidMappings[0]: 4294967294 ids from 2 on are beyond the last id, 4294967294"},
		{user(specs.LinuxNamespace{}, []specs.LinuxIDMapping{{Size: 10}, {ContainerID: 9, HostID: 10, Size: 1}}, mapping), "linux.uidMappings[1]: overlaps another mapping"},
		{user(specs.LinuxNamespace{}, []specs.LinuxIDMapping{{Size: 10}, {ContainerID: 10, HostID: 9, Size: 1}}, mapping), "linux.uidMappings[1]: overlaps another mapping"},
		{user(specs.LinuxNamespace{}, make([]specs.LinuxIDMapping, 341), mapping), "linux.uidMappings: 341 mappings are more than the kernel's 340"},
		{both(user(specs.LinuxNamespace{}, mapping, mapping), func(s *specs.Spec) { s.Process.User.UID = 1 }), "process.user.uid: cannot set uid to unmapped user in user namespace"},
		{both(user(specs.LinuxNamespace{}, mapping, mapping), func(s *specs.Spec) { s.Process.User.GID = 1 }), "process.user.gid: cannot set gid to unmapped user in user namespace"},
		{user(specs.LinuxNamespace{Path: "/run/userns"}, mapping, mapping), "linux.namespaces[6].path: user namespaces enabled, but both namespace path and non-matching mapping specified -- you may only provide one"},
		{user(specs.LinuxNamespace{Path: "/run/nosuch"}, nil, nil), "linux.namespaces[6].path: failed to cache mappings for userns: open /run/nosuch: file does not exist"},
		{both(user(specs.LinuxNamespace{Path: "/run/userns"}, nil, nil), func(s *specs.Spec) { s.Process.User.UID = 65536 }), "process.user.uid: cannot set uid to unmapped user in user namespace"},
		{offset("boottime", specs.LinuxTimeOffset{Secs: 1}), "linux.timeOffsets: time namespace offsets specified, but time namespace isn't enabled in the config"},
		{both(add(specs.LinuxNamespace{Type: "time"}), offset("realtime", specs.LinuxTimeOffset{})), `linux.timeOffsets["realtime"]: "realtime" is not a clock with an offset: monotonic and boottime are`},
		{both(add(specs.LinuxNamespace{Type: "time"}), offset("boottime", specs.LinuxTimeOffset{Nanosecs: 1e9})), `linux.timeOffsets["boottime"].nanosecs: 1000000000 is a second or more`},
		{
			without(specs.NetworkNamespace),
			"linux.namespaces: a network namespace is required: the host's own network cannot be shared with a virtual machine: " +
				"give the container a network, or none (the annotation org.huskvm.network=none does so)",
		},
		{
			without(specs.PIDNamespace),
			"linux.namespaces: a pid namespace is required: a virtual machine does not see the host's processes: " +
				"leave --pid host out (the annotation org.huskvm.pid=private does so)",
		},
		{
			without(specs.IPCNamespace),
			"linux.namespaces: an ipc namespace is required: a virtual machine cannot share the host's memory: " +
				"leave --ipc host out, and set --shm-size where a large /dev/shm is needed (the annotation org.huskvm.ipc=private does the former)",
		},
		{setSysctl("kernel.foo"), `linux.sysctl: sysctl "kernel.foo" is not in a separate kernel namespace`},
		{setSysctl("vm/swappiness"), `linux.sysctl: sysctl "vm/swappiness" is not in a separate kernel namespace`},
		{setSysctl(""), `linux.sysctl: sysctl "" is not a name`},
		{setSysctl("net..x"), `linux.sysctl: sysctl "net..x" is not a name`},
		{setSysctl("net/../kernel/x"), `linux.sysctl: sysctl "net/../kernel/x" is not a name`},
		{setSysctl("net.//.kernel"), `linux.sysctl: sysctl "net.//.kernel" is not a name`},
		{setSysctl("kernel.hostname"), `linux.sysctl: sysctl "kernel.hostname" is not allowed as it conflicts with the OCI "hostname" field`},
		{both(both(without(specs.IPCNamespace), annotate("org.huskvm.ipc", "private")), setSysctl("kernel.shmmax")), `linux.sysctl: sysctl "kernel.shmmax" is not allowed in the hosts ipc namespace`},
		{both(without(specs.UTSNamespace), setSysctl("kernel.domainname")), `linux.sysctl: sysctl "kernel.domainname" is not in a separate kernel namespace`},
		{func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.a.b": "1", "net/a/b": "2"} }, `linux.sysctl: sysctl "net.a.b" is given twice`},
	})
}

func TestRejectLinux(t *testing.T) {
	edit := func(f func(*specs.Linux)) func(*specs.Spec) {
		return func(s *specs.Spec) { f(s.Linux) }
	}
	netdev := func(devices map[string]specs.LinuxNetDevice) func(*specs.Spec) {
		return edit(func(l *specs.Linux) { l.NetDevices = devices })
	}
	testRejections(t, []rejection{
		{edit(func(l *specs.Linux) { l.RootfsPropagation = "foo" }), `linux.rootfsPropagation: rootfsPropagation="foo" is not supported`},
		{edit(func(l *specs.Linux) { l.MaskedPaths = []string{"proc/kcore"} }), `linux.maskedPaths[0]: "proc/kcore" is not an absolute path`},
		{edit(func(l *specs.Linux) { l.ReadonlyPaths = []string{"/a", ""} }), `linux.readonlyPaths[1]: "" is not an absolute path`},
		{edit(func(l *specs.Linux) { l.Personality = &specs.LinuxPersonality{Domain: "X"} }), `linux.personality.domain: invalid personality domain: "X"`},
		{edit(func(l *specs.Linux) {
			l.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux, Flags: []specs.LinuxPersonalityFlag{"X"}}
		}), `linux.personality.flags: invalid personality flag: "X"`},
		{edit(func(l *specs.Linux) { l.IntelRdt = &specs.LinuxIntelRdt{} }), "linux.intelRdt: not supported: cache and memory bandwidth of the host are given to tasks of the host, of which the container has none: put the cgroup of its virtual machine into a resctrl group"},
		{edit(func(l *specs.Linux) { l.MemoryPolicy = &specs.LinuxMemoryPolicy{} }), `linux.memoryPolicy.mode: invalid memory policy mode ""`},
		{edit(func(l *specs.Linux) { l.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind} }), "linux.memoryPolicy.nodes: memory policy mode requires at least one node but got 0"},
		{edit(func(l *specs.Linux) {
			l.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolDefault, Nodes: "0-7"}
		}), "linux.memoryPolicy.nodes: memory policy mode requires 0 nodes but got 8"},
		{edit(func(l *specs.Linux) {
			l.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0-1024"}
		}), `linux.memoryPolicy.nodes: invalid memory policy nodes "0-1024": not a list such as 0-2,7 of numbers up to 1023`},
		{edit(func(l *specs.Linux) {
			l.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{"X"}}
		}), `linux.memoryPolicy.flags[0]: invalid memory policy flag "X"`},
		{netdev(map[string]specs.LinuxNetDevice{"a/b": {}}), `linux.netDevices["a/b"]: invalid network device name "a/b"`},
		{netdev(map[string]specs.LinuxNetDevice{"": {}}), `linux.netDevices[""]: invalid network device name ""`},
		{netdev(map[string]specs.LinuxNetDevice{"eth1": {Name: "a234567890123456"}}), `linux.netDevices["eth1"].name: invalid network device name "a234567890123456"`},
		{netdev(map[string]specs.LinuxNetDevice{"a": {Name: "x"}, "x": {}}), `linux.netDevices["x"].name: another network device is to be "x", too`},
		{both(both(without(specs.NetworkNamespace), without(specs.MountNamespace)), netdev(map[string]specs.LinuxNetDevice{"a": {}})), "linux.netDevices: unable to move network devices without a NET namespace"},
		{func(s *specs.Spec) { s.Hooks.CreateContainer = []specs.Hook{{Path: "x"}} }, `hooks.createContainer[0].path: "x" is not an absolute path`},
		{func(s *specs.Spec) { s.Hooks.StartContainer = []specs.Hook{{}} }, `hooks.startContainer[0].path: "" is not an absolute path`},
		{func(s *specs.Spec) { s.Hooks.Prestart = []specs.Hook{{Path: "x"}} }, `hooks.prestart[0].path: "x" is not an absolute path`}, //nolint:staticcheck // deprecated, and used by Docker
		{func(s *specs.Spec) { s.Hooks.CreateRuntime = []specs.Hook{{Path: "/x"}, {}} }, `hooks.createRuntime[1].path: "" is not an absolute path`},
		{func(s *specs.Spec) { s.Hooks.Poststart = []specs.Hook{{Path: "/x", Timeout: ptr(0)}} }, "hooks.poststart[0].timeout: 0 is not a positive number of seconds"},
		{func(s *specs.Spec) { s.Hooks.Poststop = []specs.Hook{{Path: "/x", Timeout: ptr(-5)}} }, "hooks.poststop[0].timeout: -5 is not a positive number of seconds"},
		{func(s *specs.Spec) { s.Hooks.Poststop = []specs.Hook{{Path: "/x", Args: []string{"\x00"}}} }, `hooks.poststop[0].args[0]: "\x00" contains a NUL byte`},
		{addDevice(specs.LinuxDevice{Path: "dev/x", Type: "c"}), `linux.devices[0].path: "dev/x" is not an absolute path of a file`},
		{addDevice(specs.LinuxDevice{Path: "/..", Type: "c"}), `linux.devices[0].path: "/.." is not an absolute path of a file`},
		{addDevice(specs.LinuxDevice{Path: "/dev/x", Type: "z"}), `linux.devices[0].type: invalid device type "z"`},
		{addDevice(specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: -1}), "linux.devices[0].major: -1 is not between 0 and 4095"},
		{addDevice(specs.LinuxDevice{Path: "/dev/x", Type: "b", Minor: 1 << 20}), "linux.devices[0].minor: 1048576 is not between 0 and 1048575"},
		{addDevice(specs.LinuxDevice{Path: "/dev/x", Type: "p", UID: ptr(uint32(1<<32 - 1))}), "linux.devices[0].uid: 4294967295 is not a user id"},
		{addDevice(specs.LinuxDevice{Path: "/dev/x", Type: "p", GID: ptr(uint32(1<<32 - 1))}), "linux.devices[0].gid: 4294967295 is not a group id"},
		{addDevice(specs.LinuxDevice{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}), `linux.devices[0]: "/dev/kvm" is a device of the host (c 10:232): not supported yet`},
		{func(s *specs.Spec) {
			s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Type: "b", Access: "rwm"}}
			for i := range int64(13) {
				addDevice(specs.LinuxDevice{Path: "/dev/vd", Type: "b", Major: 252, Minor: i})(s)
			}
		}, `linux.devices[12]: "/dev/vd" is one block device more than the 12 that a virtual machine has room for`},
	})
}

func TestRejectResources(t *testing.T) {
	edit := func(f func(*specs.LinuxResources)) func(*specs.Spec) {
		return func(s *specs.Spec) { f(s.Linux.Resources) }
	}
	rule := func(d specs.LinuxDeviceCgroup) func(*specs.Spec) {
		return edit(func(r *specs.LinuxResources) { r.Devices = []specs.LinuxDeviceCgroup{d} })
	}
	unified := func(key, value string) func(*specs.Spec) {
		return edit(func(r *specs.LinuxResources) { r.Unified = map[string]string{key: value} })
	}
	const bytesOr = " is neither a number of bytes nor -1 (unlimited)"
	testRejections(t, []rejection{
		{memory(specs.LinuxMemory{Limit: ptr(int64(-2))}), "linux.resources.memory.limit: -2" + bytesOr},
		{memory(specs.LinuxMemory{Swap: ptr(int64(-2))}), "linux.resources.memory.swap: -2" + bytesOr},
		{memory(specs.LinuxMemory{Reservation: ptr(int64(-2))}), "linux.resources.memory.reservation: -2" + bytesOr},
		{memory(specs.LinuxMemory{Kernel: ptr(int64(-2))}), "linux.resources.memory.kernel: -2" + bytesOr}, //nolint:staticcheck // deprecated, and checked
		{memory(specs.LinuxMemory{KernelTCP: ptr(int64(-2))}), "linux.resources.memory.kernelTCP: -2" + bytesOr},
		{memory(specs.LinuxMemory{Swap: ptr(int64(5))}), "linux.resources.memory.swap: unable to set swap limit without memory limit"},
		{memory(specs.LinuxMemory{Swap: ptr(int64(5)), Limit: ptr(int64(-1))}), "linux.resources.memory.swap: unable to set swap limit without memory limit"},
		{memory(specs.LinuxMemory{Swap: ptr(int64(5)), Limit: ptr(int64(6))}), "linux.resources.memory.swap: 5 is below the memory limit 6: it counts memory and swap together"},
		{memory(specs.LinuxMemory{Swappiness: ptr(uint64(101))}), "linux.resources.memory.swappiness: 101 is not between 0 and 100"},
		{cpu(specs.LinuxCPU{Shares: ptr(uint64(1 << 20))}), "linux.resources.cpu.shares: 1048576 is above 262144"},
		{cpu(specs.LinuxCPU{Quota: ptr(int64(999))}), "linux.resources.cpu.quota: 999 is neither at least 1000 microseconds nor -1 (unlimited)"},
		{cpu(specs.LinuxCPU{Quota: ptr(int64(-9))}), "linux.resources.cpu.quota: -9 is neither at least 1000 microseconds nor -1 (unlimited)"},
		{cpu(specs.LinuxCPU{Period: ptr(uint64(999))}), "linux.resources.cpu.period: 999 is not between 1000 and 1000000 microseconds"},
		{cpu(specs.LinuxCPU{Period: ptr(uint64(1 << 63))}), "linux.resources.cpu.period: 9223372036854775808 is not between 1000 and 1000000 microseconds"},
		{cpu(specs.LinuxCPU{Burst: ptr(uint64(1 << 63))}), "linux.resources.cpu.burst: 9223372036854775808 is not a number of microseconds"},
		{cpu(specs.LinuxCPU{Idle: ptr(int64(2))}), "linux.resources.cpu.idle: 2 is neither 0 nor 1"},
		{cpu(specs.LinuxCPU{Cpus: "3-1"}), `linux.resources.cpu.cpus: "3-1" is not a list such as 0-2,7`},
		{cpu(specs.LinuxCPU{Cpus: "0-99999"}), `linux.resources.cpu.cpus: "0-99999" is not a list such as 0-2,7`},
		{cpu(specs.LinuxCPU{Cpus: strings.Repeat("0,", 1<<20)}), "linux.resources.cpu.cpus: the list is too long"},
		{cpu(specs.LinuxCPU{Mems: "x"}), `linux.resources.cpu.mems: "x" is not a list such as 0-2,7`},
		{edit(func(r *specs.LinuxResources) { r.Pids = &specs.LinuxPids{Limit: ptr(int64(-2))} }), "linux.resources.pids.limit: -2 is neither a number of processes nor -1 (unlimited)"},
		{unified("a/b", "1"), `linux.resources.unified: unified resource "a/b" must be a file name (no slashes)`},
		{unified("memory", "1"), `linux.resources.unified: unified resource "memory" must be in the form CONTROLLER.PARAMETER`},
		{unified(".max", "1"), `linux.resources.unified: unified resource ".max" must be in the form CONTROLLER.PARAMETER`},
		{unified("memory.max", "1G"), `linux.resources.unified: memory.max: "1G" is neither a number of bytes nor "max"`},
		{unified("memory.max", "-1"), `linux.resources.unified: memory.max: "-1" is neither a number of bytes nor "max"`},
		{unified("memory.high", "1\x00"), `linux.resources.unified["memory.high"]: "1\x00" contains a NUL byte`},
		{rule(specs.LinuxDeviceCgroup{Type: "z"}), `linux.resources.devices[0].type: invalid cgroup device type "z"`},
		{rule(specs.LinuxDeviceCgroup{Access: "rx"}), `linux.resources.devices[0].access: "rx" is not made of r, w and m`},
		{rule(specs.LinuxDeviceCgroup{Major: ptr(int64(-2))}), "linux.resources.devices[0]: a device number is negative"},
	})
}

func TestRejectSeccomp(t *testing.T) {
	edit := func(f func(*specs.LinuxSeccomp)) func(*specs.Spec) {
		return func(s *specs.Spec) { f(s.Linux.Seccomp) }
	}
	call := func(c specs.LinuxSyscall) func(*specs.Spec) {
		return edit(func(s *specs.LinuxSeccomp) { s.Syscalls = []specs.LinuxSyscall{c} })
	}
	arg := func(a specs.LinuxSeccompArg) func(*specs.Spec) {
		return call(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: specs.OpEqualTo}, a}})
	}
	read := []string{"read"}
	const notify = "SCMP_ACT_NOTIFY is not supported: the system calls are made in a virtual machine, where the listener on the host can't answer for them"
	const listener = ": notification of a process on the host is not supported: the system calls are made in a virtual machine"
	testRejections(t, []rejection{
		{edit(func(s *specs.LinuxSeccomp) { s.ListenerPath = "/x" }), "linux.seccomp.listenerPath" + listener},
		{edit(func(s *specs.LinuxSeccomp) { s.ListenerMetadata = "x" }), "linux.seccomp.listenerMetadata" + listener},
		{edit(func(s *specs.LinuxSeccomp) { s.DefaultAction = "" }), "linux.seccomp.defaultAction: must not be empty"},
		{edit(func(s *specs.LinuxSeccomp) { s.DefaultAction = "ALLOW" }), `linux.seccomp.defaultAction: invalid action "ALLOW"`},
		{edit(func(s *specs.LinuxSeccomp) { s.DefaultAction = specs.ActNotify }), "linux.seccomp.defaultAction: " + notify},
		{edit(func(s *specs.LinuxSeccomp) { s.DefaultAction = specs.ActKill }), "linux.seccomp.defaultErrnoRet: SCMP_ACT_KILL takes no error number"},
		{edit(func(s *specs.LinuxSeccomp) { s.DefaultErrnoRet = ptr(uint(4096)) }), "linux.seccomp.defaultErrnoRet: 4096 is not between 0 and 4095"},
		{edit(func(s *specs.LinuxSeccomp) { s.Architectures = []specs.Arch{"x86_64"} }), `linux.seccomp.architectures[0]: invalid architecture "x86_64"`},
		{edit(func(s *specs.LinuxSeccomp) {
			s.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, "SECCOMP_FILTER_FLAG_NEW_LISTENER"}
		}), `linux.seccomp.flags[1]: invalid flag "SECCOMP_FILTER_FLAG_NEW_LISTENER"`},
		{call(specs.LinuxSyscall{Action: specs.ActAllow}), "linux.seccomp.syscalls[0].names: must not be empty"},
		{call(specs.LinuxSyscall{Names: []string{"read", ""}, Action: specs.ActAllow}), "linux.seccomp.syscalls[0].names[1]: empty string is not a valid syscall"},
		{call(specs.LinuxSyscall{Names: read}), "linux.seccomp.syscalls[0].action: must not be empty"},
		{call(specs.LinuxSyscall{Names: read, Action: specs.ActNotify}), "linux.seccomp.syscalls[0].action: " + notify},
		{call(specs.LinuxSyscall{Names: read, Action: specs.ActTrap, ErrnoRet: ptr(uint(1))}), "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_TRAP takes no error number"},
		{call(specs.LinuxSyscall{Names: read, Action: specs.ActTrace, ErrnoRet: ptr(uint(65536))}), "linux.seccomp.syscalls[0].errnoRet: 65536 is not between 0 and 65535"},
		{arg(specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo}), "linux.seccomp.syscalls[0].args[1].index: 6 is not between 0 and 5"},
		{arg(specs.LinuxSeccompArg{Op: "=="}), `linux.seccomp.syscalls[0].args[1].op: invalid operator "=="`},
	})
}

// TestRejectCall tests what the caller passes besides the spec.
func TestRejectCall(t *testing.T) {
	if _, err := Convert(testEnv(), nil); err == nil {
		t.Error("no spec: accepted")
	}
	for _, edit := range []func(*Env){
		func(e *Env) { e.Bundle = "relative" },
		func(e *Env) { e.ID = "" },
		func(e *Env) { e.ID = "a/b" },
	} {
		env := testEnv()
		edit(&env)
		if _, err := Convert(env, Example()); err == nil || !strings.HasPrefix(err.Error(), "convert spec: ") {
			t.Errorf("bundle %q, id %q: %v", env.Bundle, env.ID, err)
		}
	}
}

// TestRejectTooLarge: what the agent channel could not carry is refused here, where the error
// can name the field.
func TestRejectTooLarge(t *testing.T) {
	big := strings.Repeat("x", maxRequest)
	for field, edit := range map[string]func(*specs.Spec){
		"process":     func(s *specs.Spec) { s.Process.Args = []string{big} },
		"config.json": addMount(specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{big}}),
	} {
		spec := readSpec(t, "docker.json")
		edit(spec)
		_, err := Convert(testEnv(), spec)
		if err == nil || !strings.HasPrefix(err.Error(), field+": ") ||
			!strings.HasSuffix(err.Error(), " bytes of JSON are more than the 4128768 the guest takes") {
			t.Errorf("%s: %v", field, err)
		}
	}
}
