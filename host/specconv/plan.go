// Package specconv turns an OCI runtime-spec Spec into a Plan: what the host
// does (VM size, exported files, namespaces, cgroup) and what the agent is told
// (a spec of its own, built up field by field). It is pure: it reads no file but
// those of the Env it is given, starts nothing and keeps no state.
package specconv

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/specconv/seccomp"
)

// Annotations by which one container overrides the settings file.
const (
	AnnotationNetwork   = "org.huskvm.network"    // "none": run without a network namespace entry, with lo only
	AnnotationPID       = "org.huskvm.pid"        // "private": run without a pid namespace entry, with one of the guest's own
	AnnotationIPC       = "org.huskvm.ipc"        // likewise
	AnnotationMemoryMiB = "org.huskvm.memory_mib" // guest RAM
	AnnotationVCPUs     = "org.huskvm.vcpus"
	AnnotationAccel     = "org.huskvm.accel" // "kvm" or "tcg"; in `state` also the one in use
	AnnotationNICs      = "org.huskvm.nics"
	// AnnotationTemplateScope is "container" or "tenant:NAME": with whom this
	// container may share a memory template, of those that the settings let it.
	AnnotationTemplateScope = "org.huskvm.template_scope"
	// AnnotationFreePages is "true" or "false": whether the guest gives memory that
	// it has freed back to the host, which a start from a template rules out.
	AnnotationFreePages = "org.huskvm.free_page_reporting"
	// AnnotationAntiSpoofing is "off": what the guest sends may have any sender. This
	// one and the next weaken a wall, so the settings must allow them.
	AnnotationAntiSpoofing = "org.huskvm.anti_spoofing"
	// AnnotationUncarried is "accept": a packet filter in the container's network
	// namespace that the guest can't have is no reason not to start.
	AnnotationUncarried = "org.huskvm.uncarried_filters"
	// AnnotationIsolation is IsolationVM or IsolationRunc: a virtual machine of husk's, or
	// a container of the host's runc, to which the cli hands those that may choose.
	AnnotationIsolation = "org.huskvm.isolation"
)

// Values of AnnotationIsolation.
const (
	IsolationVM   = "vm"
	IsolationRunc = "runc"
)

// Guest paths both halves of a plan are made with.
const (
	// GuestShareDir is where the agent mounts the exported tree.
	GuestShareDir = "/run/husk/share"
	// ShareTag is the virtio mount tag of the exported tree.
	ShareTag = "husk"
)

// Plan is one container, ready to be made. It is final when Convert returns it: what is
// found out later goes beside it, as Found does, so that whoever reads a plan need not know
// who has been there before.
type Plan struct {
	VM     VM
	Shares []Share // the rootfs first
	// UserNS are the mappings of the container's user namespace, nil without one. The
	// guest's ids are the host's.
	UserNS *IDMaps `json:",omitempty"`
	// Disks are the host's block devices that the guest gets, in the order in which
	// they are plugged.
	Disks []Disk `json:",omitempty"`
	// Notify is where the process may tell a service manager of itself; nil: nowhere.
	Notify *Notify `json:",omitempty"`
	// Guest is the spec for the agent as far as config.json says it, see GuestSpec:
	// root.path and bind sources are guest paths.
	Guest *specs.Spec
	// Seccomp is the filter for all processes of the container, compiled; nil: none.
	Seccomp *seccomp.Filter
	// ShareOptions is the guest's mount data for the exported tree.
	ShareOptions string
	Shadow       Shadow
	// Weakened are the walls that annotations ask to do without.
	Weakened Weakened `json:",omitzero"`
	// Warnings name each field that was dropped, one sentence each.
	Warnings []string
}

// Weakened are walls that a container is to do without, by its annotations.
type Weakened struct {
	Spoofing  bool // any sender in what the guest sends
	Uncarried bool // packet filters that the guest can't have
}

// Annotations returns the names of the annotations that ask for it.
func (w Weakened) Annotations() (names []string) {
	if w.Spoofing {
		names = append(names, AnnotationAntiSpoofing)
	}
	if w.Uncarried {
		names = append(names, AnnotationUncarried)
	}
	return names
}

// VM is the size of the machine; zero means the settings file's default.
type VM struct {
	MemoryMiB int
	VCPUs     int // as the annotation says
	CPUs      int // how many the container's limits let it keep busy; 0: no limit
	NICs      int
	Accel     string
	FreePages string // as the annotation says; empty: the settings' default
	// TemplateScope is as the annotation says; empty: what the settings have.
	TemplateScope string `json:",omitempty"`
}

// Share is one file or directory of the host exported to the guest.
type Share struct {
	HostPath string // absolute
	// Name is its place in the exported tree, relative and clean, e.g. "rootfs"
	// or "mounts/0/data". Its last element is that of HostPath, because a bind's
	// mountinfo root should end in its source's name.
	Name      string
	ReadOnly  bool // enforced on the host as well as in the guest
	Recursive bool // rbind: mounts below HostPath are exported too
	IsDir     bool
	// Destination is where the container sees it, absolute; "/" for the rootfs.
	Destination string
	// IDMap maps the ids that files have to those that the host, and so the guest,
	// sees; nil: they are the same.
	IDMap *MountIDMap `json:",omitempty"`
	// Overlay is the mount data of an overlay filesystem that the host mounts for this
	// container; HostPath is then only its name.
	Overlay string `json:",omitempty"`
}

// Notify is the socket that the process's NOTIFY_SOCKET names (sd_notify(3)), below a
// bind. Whether it is there is not known yet.
type Notify struct {
	HostPath string // of the bind's source
	// Name is the socket's place below HostPath, relative and clean; empty: it is
	// HostPath itself. The container may have put symbolic links there.
	Name      string
	GuestPath string // where the container sees it, absolute
}

// MountIDMap are the mappings of an id-mapped mount: ContainerID is what the
// filesystem has, HostID what is seen.
type MountIDMap struct {
	IDMaps
	Recursive bool // for the mounts below it as well
}

// Disk is one block device of the host. The guest's spec has its node with the
// host's number, which is another in the guest.
type Disk struct {
	Major, Minor uint32
	// ReadOnly is set where the device rules of the spec do not let the container
	// write: the guest's kernel is not to be believed.
	ReadOnly bool
	Field    string // of the spec, for errors
}

// Serial is what the guest knows disk number i by.
func Serial(i int) string { return fmt.Sprintf("husk-%d", i) }

// Shadow is the shape of the supervisor's own process on the host.
type Shadow struct {
	// Namespaces are those it is started in, each with the host path to join or
	// empty for a new one.
	Namespaces []specs.LinuxNamespace
	// Face are the namespaces that its pid shows in the end, each with the host
	// path to join or empty for the runtime's own: where config.json joins a mount
	// namespace, or has no mount or network namespace. What the supervisor does
	// for the container needs such of its own.
	Face []specs.LinuxNamespace `json:",omitempty"`
	// UserNS is the user namespace of the container's pid: with the host path to join,
	// or the plan's mappings; nil: there is none.
	UserNS *specs.LinuxNamespace `json:",omitempty"`
	// NetDevices are moved into its network namespace before it looks for interfaces.
	NetDevices  []NetDevice `json:",omitempty"`
	Hostname    string
	Domainname  string
	CgroupsPath string
	// Resources are the container's limits as config.json has them, for the host's
	// cgroup.
	Resources   *specs.LinuxResources `json:",omitempty"`
	OOMScoreAdj *int
	Args        []string
}
