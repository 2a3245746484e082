package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/qemu"
)

var featuresCommand = &cli.Command{
	Name:         "features",
	Usage:        "print what husk supports as JSON (runtime-spec, features.md)",
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 0); err != nil {
			return err
		}
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "    ")
		if err := enc.Encode(supported()); err != nil {
			return fmt.Errorf("print features: %w", err)
		}
		return nil
	},
}

// Annotations in the output of features.
const (
	annotationPrefix     = "org.huskvm."
	annotationVersion    = annotationPrefix + "version"
	annotationCommit     = annotationPrefix + "commit"
	annotationCheckpoint = annotationPrefix + "checkpoint.enabled"
)

// supported returns the output of features. Engines ask for it when they start: it depends on
// this build and, for the accelerator, on the machine, and must not fail where a container
// would.
func supported() *features.Features {
	yes, no := true, false
	f := &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions:  mountOptions(),
		Linux: &features.Linux{
			Namespaces:   namespaces(),
			Capabilities: capabilities(),
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &no, Rdma: &yes},
			Seccomp:      seccompFeatures(),
			Apparmor:     &features.Apparmor{Enabled: &no},
			Selinux:      &features.Selinux{Enabled: &no},
			IntelRdt:     &features.IntelRdt{Enabled: &no, Schemata: &no, Monitoring: &no},
			// containerd and CRI-O give Kubernetes user namespaces if this is true.
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
			MemoryPolicy:    memoryPolicyFeatures(),
		},
		Annotations: map[string]string{
			annotationVersion:    version,
			annotationCommit:     commit,
			annotationCheckpoint: "false",
			// This is the default; the settings may let a container choose.
			specconv.AnnotationIsolation: specconv.IsolationVM,
		},
		// They choose another runtime, change the VM's size, take its network away, or weaken
		// restrictions if the settings allow that.
		PotentiallyUnsafeConfigAnnotations: []string{annotationPrefix},
	}
	if accel, _, err := qemu.ProbeAccel(hypervisor.Auto); err == nil {
		f.Annotations[specconv.AnnotationAccel] = string(accel)
	}
	return f
}

// namespaces returns the types of namespaces that a container can have.
func namespaces() []string {
	all := []string{
		string(specs.CgroupNamespace), string(specs.IPCNamespace), string(specs.MountNamespace),
		string(specs.NetworkNamespace), string(specs.PIDNamespace), string(specs.TimeNamespace),
		string(specs.UserNamespace), string(specs.UTSNamespace),
	}
	slices.Sort(all)
	return all
}

func memoryPolicyFeatures() *features.MemoryPolicy {
	f := &features.MemoryPolicy{}
	for _, mode := range specconv.MemoryPolicyModes {
		f.Modes = append(f.Modes, string(mode))
	}
	for _, flag := range specconv.MemoryPolicyFlags {
		f.Flags = append(f.Flags, string(flag))
	}
	return f
}

// seccompFeatures returns what host/specconv/seccomp compiles, which a test checks.
// Notification (SCMP_ACT_NOTIFY) is refused.
func seccompFeatures() *features.Seccomp {
	yes := true
	return &features.Seccomp{
		Enabled: &yes,
		Actions: []string{
			"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
			"SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
		},
		Operators: []string{
			"SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
		},
		Archs: []string{"SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"},
		KnownFlags: []string{
			"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC",
			"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
		},
		SupportedFlags: []string{"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"},
	}
}

func capabilities() []string {
	var names []string
	for _, c := range capability.ListKnown() {
		names = append(names, "CAP_"+strings.ToUpper(c.String()))
	}
	return names
}

// mountOptions returns the options that the agent's parser takes as flags. The parser is in
// libcontainer (mountoptions.go), which host code does not import, so a test compares the two.
// With "rro" among them Docker and CRI ask for recursively read-only binds.
func mountOptions() []string {
	options := []string{
		"acl", "async", "bind", "defaults", "dirsync", "idmap", "iversion", "lazytime", "loud", "mand", "noacl",
		"noiversion", "nolazytime", "nomand", "private", "rbind", "remount", "ridmap", "rprivate", "rshared",
		"rslave", "runbindable", "shared", "silent", "slave", "sync", "tmpcopyup", "unbindable",
	}
	// These are attributes of the mount itself, which also have a form for all mounts below it.
	for _, o := range []string{
		"atime", "dev", "diratime", "exec", "noatime", "nodev", "nodiratime", "noexec", "norelatime",
		"nostrictatime", "nosuid", "nosymfollow", "relatime", "ro", "rw", "strictatime", "suid", "symfollow",
	} {
		options = append(options, o, "r"+o)
	}
	slices.Sort(options)
	return options
}
