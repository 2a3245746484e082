// Package specconv turns an OCI runtime spec into a Plan: what the host does (size of the VM,
// shared files, namespaces, cgroup), and what the agent gets (a spec that is built field by
// field). The package reads no file except through Env, starts nothing and keeps no state.
//
// The order of calls: Load reads config.json; Convert checks it and returns a Plan, which is
// final; GuestSpec makes the agent's spec from the plan and from what was found while the
// container was made.
package specconv

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/specconv/seccomp"
)

// Annotations by which a container overrides the settings file.
const (
	AnnotationNetwork   = "org.huskvm.network"    // "none": run without a network namespace entry, with lo only
	AnnotationPID       = "org.huskvm.pid"        // "private": run without a pid namespace entry, with one of the guest's own
	AnnotationIPC       = "org.huskvm.ipc"        // likewise
	AnnotationMemoryMiB = "org.huskvm.memory_mib" // size of the guest's RAM
	AnnotationVCPUs     = "org.huskvm.vcpus"
	AnnotationAccel     = "org.huskvm.accel" // "kvm" or "tcg"; in `state` also the one in use
	AnnotationNICs      = "org.huskvm.nics"
	// AnnotationTemplateScope is "container" or "tenant:NAME": with which of the containers
	// that the settings allow this one may share a memory template.
	AnnotationTemplateScope = "org.huskvm.template_scope"
	// AnnotationFreePages is "true" or "false": whether the guest gives freed memory back to
	// the host.
	AnnotationFreePages = "org.huskvm.free_page_reporting"
	// AnnotationAntiSpoofing is "off": frames from the guest may have any sender. This
	// annotation and the next weaken the isolation, so the settings must allow them.
	AnnotationAntiSpoofing = "org.huskvm.anti_spoofing"
	// AnnotationUncarried is "accept": the container starts although its network namespace has
	// a packet filter that the guest cannot have.
	AnnotationUncarried = "org.huskvm.uncarried_filters"
	// AnnotationIsolation is IsolationVM or IsolationRunc: a virtual machine of husk's, or a
	// container of the host's runc, to which the cli hands over containers that may choose.
	AnnotationIsolation = "org.huskvm.isolation"
)

// Values of AnnotationIsolation.
const (
	IsolationVM   = "vm"
	IsolationRunc = "runc"
)

// Paths in the guest that both halves of a plan use.
const (
	// GuestShareDir is the directory on which the agent mounts the share.
	GuestShareDir = "/run/husk/share"
	// ShareTag is the virtio mount tag of the share.
	ShareTag = "husk"
)

// Plan describes one container completely. It is final when Convert returns it. What is found
// out later is kept beside it, as in Found, so that a reader of a plan need not know which code
// has run before.
type Plan struct {
	VM     VM
	Shares []Share // the rootfs comes first
	// UserNS are the mappings of the container's user namespace; nil if it has none. Ids in the
	// guest are the same as on the host.
	UserNS *IDMaps `json:",omitempty"`
	// Disks are the host's block devices that the guest gets, in the order in which they are
	// plugged.
	Disks []Disk `json:",omitempty"`
	// Notify is the process's notification socket; nil: none.
	Notify *Notify `json:",omitempty"`
	// Guest is the agent's spec as far as config.json decides it: see GuestSpec. root.path and
	// sources of binds are paths in the guest.
	Guest *specs.Spec
	// Seccomp is the compiled filter for all processes of the container; nil: none.
	Seccomp *seccomp.Filter
	// ShareOptions are the mount options with which the guest mounts the share.
	ShareOptions string
	Shadow       Shadow
	// Weakened are the restrictions that annotations ask to drop.
	Weakened Weakened `json:",omitzero"`
	// Warnings name each field that was dropped, one sentence for each.
	Warnings []string
}

// Weakened are restrictions that a container's annotations ask to drop.
type Weakened struct {
	Spoofing  bool // frames may have any sender
	Uncarried bool // the packet filter may be one that the guest cannot have
}

// Annotations returns the names of the annotations that ask for them.
func (w Weakened) Annotations() (names []string) {
	if w.Spoofing {
		names = append(names, AnnotationAntiSpoofing)
	}
	if w.Uncarried {
		names = append(names, AnnotationUncarried)
	}
	return names
}

// VM is the size of the machine. A zero value means the default of the settings file.
type VM struct {
	MemoryMiB int
	VCPUs     int // from the annotation
	CPUs      int // how many CPUs the limits let the container use; 0: no limit
	NICs      int
	Accel     string
	FreePages string // from the annotation; empty: as the settings say
	// TemplateScope is from the annotation; empty: as the settings say.
	TemplateScope string `json:",omitempty"`
}

// Share is one file or directory of the host in the share.
type Share struct {
	HostPath string // absolute
	// Name is its relative, clean path in the share, such as "rootfs" or "mounts/0/data". Its
	// last element is that of HostPath, because mountinfo should show the source's name as the
	// root of a bind.
	Name      string
	ReadOnly  bool // enforced on the host and in the guest
	Recursive bool // rbind: mounts below HostPath are shared too
	IsDir     bool
	// Destination is the absolute path at which the container sees it; "/" for the rootfs.
	Destination string
	// IDMap maps the ids that files have to those that the host, and so the guest, sees; nil:
	// the same ids.
	IDMap *MountIDMap `json:",omitempty"`
	// Overlay is the mount data of an overlay filesystem that the host mounts for this
	// container. HostPath is only its name then.
	Overlay string `json:",omitempty"`
}

// Notify is the socket in a bind that the process's NOTIFY_SOCKET names (sd_notify(3)). Whether
// it exists is not known yet.
type Notify struct {
	HostPath string // the bind's source
	// Name is the socket's relative, clean path below HostPath; empty: HostPath itself is the
	// socket. The path may contain symbolic links that the container has made.
	Name      string
	GuestPath string // absolute path at which the container sees it
}

// MountIDMap are the mappings of an id-mapped mount: ContainerID is the id in the filesystem,
// HostID the one that is seen.
type MountIDMap struct {
	IDMaps
	Recursive bool // also for the mounts below
}

// Disk is one block device of the host. The node in the guest's spec has the host's number; the
// agent replaces it by the guest's.
type Disk struct {
	Major, Minor uint32
	// ReadOnly: the spec's device rules do not allow writing. The host enforces it, because the
	// guest's kernel is not trusted.
	ReadOnly bool
	Field    string // field of the spec, for errors
}

// Serial returns the serial number by which the guest finds disk i.
func Serial(i int) string { return fmt.Sprintf("husk-%d", i) }

// Shadow describes the supervisor's own process on the host.
type Shadow struct {
	// Namespaces are those in which it starts, each with the host path to join, or an empty
	// path for a new one.
	Namespaces []specs.LinuxNamespace
	// Face are the namespaces that its pid shows at the end, each with the host path to join,
	// or an empty path for the runtime's own. They are set if config.json joins a mount
	// namespace, or has no mount or network namespace, because the supervisor needs its own of
	// these to work in.
	Face []specs.LinuxNamespace `json:",omitempty"`
	// UserNS is the user namespace of the container's pid, with the host path to join, or
	// without a path for the plan's mappings; nil: none.
	UserNS *specs.LinuxNamespace `json:",omitempty"`
	// NetDevices are moved into its network namespace before it looks for interfaces.
	NetDevices  []NetDevice `json:",omitempty"`
	Hostname    string
	Domainname  string
	CgroupsPath string
	// Resources are the container's limits of config.json, for the host's cgroup.
	Resources   *specs.LinuxResources `json:",omitempty"`
	OOMScoreAdj *int
	Args        []string
}
