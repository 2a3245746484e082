package specconv

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/linux/sysctl"
)

// hasNamespace says whether the spec has a namespace of this type, new or joined by path.
func hasNamespace(l *specs.Linux, t specs.LinuxNamespaceType) bool {
	return l != nil && slices.ContainsFunc(l.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == t })
}

var namespaceTypes = map[specs.LinuxNamespaceType]bool{
	specs.PIDNamespace: true, specs.NetworkNamespace: true, specs.MountNamespace: true, specs.IPCNamespace: true,
	specs.UTSNamespace: true, specs.UserNamespace: true, specs.CgroupNamespace: true, specs.TimeNamespace: true,
}

func validateNamespaces(spec *specs.Spec) error {
	if spec.Linux == nil {
		return fieldErrorf("linux", "must be specified: a network namespace is required")
	}
	seen := map[specs.LinuxNamespaceType]bool{}
	for i, ns := range spec.Linux.Namespaces {
		field := index("linux.namespaces", i)
		switch {
		case !namespaceTypes[ns.Type]:
			return fieldErrorf(field+".type", "namespace %s does not exist", quote(ns.Type))
		case seen[ns.Type]:
			return fieldErrorf(field+".type", "malformed spec file: duplicated ns %s", quote(ns.Type))
		case ns.Path != "" && !filepath.IsAbs(ns.Path):
			return fieldErrorf(field+".path", "%s is not an absolute path", quote(ns.Path))
		}
		seen[ns.Type] = true
	}
	if err := validateUserNamespace(spec); err != nil {
		return err
	}
	if err := validateTimeOffsets(spec.Linux, seen[specs.TimeNamespace]); err != nil {
		return err
	}
	if seen[specs.MountNamespace] {
		// A config that also has no mount namespace is not from an engine.
		return refuseHosts(spec, seen)
	}
	return nil
}

// refuseHosts refuses the host's network, pid or ipc namespace, which engines ask for by
// leaving the entry out. The container would start and not find what it was to share.
func refuseHosts(spec *specs.Spec, seen map[specs.LinuxNamespaceType]bool) error {
	if !seen[specs.NetworkNamespace] && spec.Annotations[AnnotationNetwork] != "none" {
		return fieldErrorf("linux.namespaces", "a network namespace is required: the host's own network cannot be shared with a virtual machine: "+
			"give the container a network, or none (the annotation %s=none does so)", AnnotationNetwork)
	}
	if !seen[specs.PIDNamespace] && spec.Annotations[AnnotationPID] == "" {
		return fieldErrorf("linux.namespaces", "a pid namespace is required: a virtual machine does not see the host's processes: "+
			"leave --pid host out (the annotation %s=private does so)", AnnotationPID)
	}
	if !seen[specs.IPCNamespace] && spec.Annotations[AnnotationIPC] == "" {
		return fieldErrorf("linux.namespaces", "an ipc namespace is required: a virtual machine cannot share the host's memory: "+
			"leave --ipc host out, and set --shm-size where a large /dev/shm is needed (the annotation %s=private does the former)", AnnotationIPC)
	}
	return nil
}

// validateTimeOffsets uses runc's words where runc has this error.
func validateTimeOffsets(l *specs.Linux, namespace bool) error {
	if len(l.TimeOffsets) > 0 && !namespace {
		return fieldErrorf("linux.timeOffsets", "time namespace offsets specified, but time namespace isn't enabled in the config")
	}
	for _, clock := range slices.Sorted(maps.Keys(l.TimeOffsets)) {
		field := key("linux.timeOffsets", clock)
		if clock != "monotonic" && clock != "boottime" {
			return fieldErrorf(field, "%s is not a clock with an offset: monotonic and boottime are", quote(clock))
		}
		if o := l.TimeOffsets[clock]; o.Nanosecs >= 1e9 {
			return fieldErrorf(field+".nanosecs", "%d is a second or more", o.Nanosecs)
		}
	}
	return nil
}

// guestNamespaces returns the container's namespaces inside the guest. All are new, because a
// path names a namespace of the host. Only the cgroup namespace depends on the spec: without it
// a container sees its path in the guest's cgroup tree, which is harmless; without the others
// it would share the agent's. A time namespace without offsets shows the guest's own clocks and
// is left out.
func guestNamespaces(l *specs.Linux) []specs.LinuxNamespace {
	guest := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace},
		{Type: specs.NetworkNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.MountNamespace},
	}
	if hasNamespace(l, specs.CgroupNamespace) {
		guest = append(guest, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	if hasNamespace(l, specs.UserNamespace) {
		guest = append(guest, specs.LinuxNamespace{Type: specs.UserNamespace})
	}
	if len(l.TimeOffsets) > 0 {
		guest = append(guest, specs.LinuxNamespace{Type: specs.TimeNamespace})
	}
	return guest
}

// shadowNamespaces returns the namespaces in which the supervisor starts, and those that its
// pid shows at the end in place of some of them. The supervisor always has a mount namespace to
// work in. Without an entry for a network namespace it gets a new one, because it must find
// only lo when it looks for interfaces for the guest.
func shadowNamespaces(l *specs.Linux) (shadow, face []specs.LinuxNamespace) {
	for _, ns := range l.Namespaces {
		switch {
		case ns.Type == specs.TimeNamespace, ns.Type == specs.UserNamespace:
		case ns.Type == specs.MountNamespace && ns.Path != "":
			shadow = append(shadow, specs.LinuxNamespace{Type: ns.Type})
			face = append(face, ns)
		default:
			shadow = append(shadow, specs.LinuxNamespace{Type: ns.Type, Path: ns.Path})
		}
	}
	for _, t := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.MountNamespace} {
		if !hasNamespace(l, t) {
			shadow = append(shadow, specs.LinuxNamespace{Type: t})
			face = append(face, specs.LinuxNamespace{Type: t})
		}
	}
	return shadow, face
}

func namespaceWarnings(spec *specs.Spec, w *warnings) {
	for i, ns := range spec.Linux.Namespaces {
		field := index("linux.namespaces", i)
		switch ns.Type {
		case specs.TimeNamespace:
			if ns.Path != "" {
				w.addf(field, "the time namespace at %s is not joined: the clocks are the guest's own", quote(ns.Path))
			}
		case specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace:
			if ns.Path != "" {
				w.addf(field, "the %s namespace at %s is joined on the host only: in the guest the container has its own",
					ns.Type, quote(ns.Path))
			}
		}
	}
	for _, t := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace} {
		if !hasNamespace(spec.Linux, t) {
			w.addf("linux.namespaces", "no %s namespace: the container has its own in the guest and does not see the host's", t)
		}
	}
	network, set := spec.Annotations[AnnotationNetwork]
	if network != "none" && !hasNamespace(spec.Linux, specs.NetworkNamespace) {
		w.addf("linux.namespaces", "no network namespace: the container has its own in the guest, with lo alone")
	}
	w.dropIf(set && hasNamespace(spec.Linux, specs.NetworkNamespace), key("annotations", AnnotationNetwork),
		"the spec has a network namespace")
}

// validateSysctls applies runc's rule that a sysctl must belong to a namespace of the
// container. In the guest's own kernel more could be allowed, but the same config.json should
// mean the same here as elsewhere.
func validateSysctls(spec *specs.Spec) error {
	seen := map[string]bool{}
	for _, raw := range slices.Sorted(maps.Keys(spec.Linux.Sysctl)) {
		name := sysctl.Name(raw)
		if seen[name] {
			return fieldErrorf("linux.sysctl", "sysctl %s is given twice", quote(name))
		}
		seen[name] = true
		if err := validateSysctl(spec, raw, name); err != nil {
			return err
		}
	}
	return nil
}

func validateSysctl(spec *specs.Spec, raw, name string) error {
	q := quote(raw)
	for element := range strings.SplitSeq(name, ".") {
		if element == "" || strings.HasPrefix(element, "/") || strings.HasSuffix(element, "/") || strings.Contains(element, "//") {
			return fieldErrorf("linux.sysctl", "sysctl %s is not a name", q)
		}
	}
	switch ns := sysctl.Namespace(name); {
	case ns == specs.IPCNamespace:
		if !hasNamespace(spec.Linux, specs.IPCNamespace) {
			return fieldErrorf("linux.sysctl", "sysctl %s is not allowed in the hosts ipc namespace", q)
		}
	case ns == specs.NetworkNamespace:
		// Without an entry for a network namespace the guest still has its own.
	case name == "kernel.domainname" && hasNamespace(spec.Linux, specs.UTSNamespace):
	case name == "kernel.hostname" && hasNamespace(spec.Linux, specs.UTSNamespace):
		return fieldErrorf("linux.sysctl", `sysctl %s is not allowed as it conflicts with the OCI "hostname" field`, q)
	default:
		return fieldErrorf("linux.sysctl", "sysctl %s is not in a separate kernel namespace", q)
	}
	return nil
}

// SeesCgroup says whether the container's processes see the name of their cgroup, because they
// have no cgroup namespace.
func (p *Plan) SeesCgroup() bool { return !hasNamespace(p.Guest.Linux, specs.CgroupNamespace) }
