package qemu

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/nsfork"
)

// newNamespaces are the vmm's own, with nobody else in them. The user namespace is
// not among them.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// namespacesOf: the kernel makes no pid namespace for a vmm with a user namespace where
// the caller's own pid namespace belongs to the container's. The vmm then sees the
// processes of husk's that stand for the container, and has no right to any of them.
func namespacesOf(cfg hypervisor.Config) uintptr {
	if cfg.User != nil {
		return newNamespaces &^ unix.CLONE_NEWPID
	}
	return newNamespaces
}

// fileCapabilities are what QEMU's 9p server, one process of uid 0 that acts for all
// users of the guest, cannot do without whatever the container may: it makes a file
// as root and gives it to its user (CHOWN), opens what belongs to users
// (DAC_OVERRIDE), sets modes and times of it (FOWNER) and its setgid bit (FSETID).
// Which user may do what is decided in the guest.
var fileCapabilities = []capability.Cap{capability.CAP_CHOWN, capability.CAP_DAC_OVERRIDE, capability.CAP_FOWNER, capability.CAP_FSETID}

// lentCapabilities are those of hypervisor.Config.FileCapabilities that count.
var lentCapabilities = []capability.Cap{capability.CAP_MKNOD, capability.CAP_SETFCAP}

// keptCapabilities are all that the vmm has. Without a share it works on no files.
func keptCapabilities(cfg hypervisor.Config) []capability.Cap {
	if cfg.ShareDir == "" {
		return nil
	}
	kept := slices.Clone(fileCapabilities)
	for _, c := range lentCapabilities {
		if slices.Contains(cfg.FileCapabilities, "CAP_"+strings.ToUpper(c.String())) {
			kept = append(kept, c)
		}
	}
	return kept
}

// The vmm's limits.
const (
	// maxFiles is how many files the vmm may have open. QEMU's 9p server closes the
	// guest's files before it has as many, and opens them again when they are used.
	maxFiles = 65536
	// spareMiB is how much memory of its own the vmm may have beside what its guest sees
	// and the code it translates. The 9p server keeps something for each file that the
	// guest has ever looked up, for as long as the guest likes: without a limit that
	// could be all of the host's memory.
	spareMiB = 1536
	// noCore: the kernel writes no core file of this size, and, which it does with 0,
	// starts no program that takes one.
	noCore = 1
)

// restrictions are what the vmm does to itself before it is executed: it needs
// CAP_SYS_ADMIN for the first of them, and has lost that after the last.
func restrictions(cfg hypervisor.Config) ([]nsfork.Call, error) {
	r := &restricting{}
	r.mounts(cfg.ShareDir)
	r.limits(cfg)
	r.user(cfg)
	r.capabilities(keptCapabilities(cfg), cfg.User != nil)
	return r.calls, r.err
}

// restricting collects calls.
type restricting struct {
	calls []nsfork.Call
	err   error // the first
}

func (r *restricting) call(name string, nr int, args ...any) {
	c, err := nsfork.NewCall(name, nr, args...)
	if err != nil && r.err == nil {
		r.err = err
	}
	r.calls = append(r.calls, c)
}

// harmlessMounts is what each mount in the vmm's namespace is.
var harmlessMounts = unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}

// mounts: a /proc of the vmm's pid namespace, with processes only, and a share in
// which the host's kernel obeys nothing that the guest makes: no setuid bit, no
// device, no program. The guest's kernel has its own opinion of each.
func (r *restricting) mounts(share string) {
	const harmless = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	r.call("leave the host's mounts", unix.SYS_MOUNT, "none", "/", "none", unix.MS_SLAVE|unix.MS_REC)
	r.call("mount /proc", unix.SYS_MOUNT, "proc", "/proc", "proc", harmless|unix.MS_RDONLY, "subset=pid")
	// Above it, until confine, a whole one: QEMU reads /proc/sys/vm/overcommit_memory once,
	// before it maps memory that the host is not to reserve.
	r.call("mount /proc for the start", unix.SYS_MOUNT, "proc", "/proc", "proc", harmless|unix.MS_RDONLY, "")
	if share == "" {
		return
	}
	// Whatever it is, it becomes a mount, which alone has flags and can be moved.
	r.call("bind share "+share, unix.SYS_MOUNT, share, share, "none", unix.MS_BIND|unix.MS_REC)
	attr := harmlessMounts
	r.call("make share nosuid, nodev, noexec", unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD, share, unix.AT_RECURSIVE,
		unsafe.Pointer(&attr), int(unsafe.Sizeof(attr)))
}

// maxData is in bytes. What is counted is private and writable.
func maxData(cfg hypervisor.Config) uint64 {
	return uint64(cfg.MemoryMiB+TranslationMiB+spareMiB) << 20
}

func (r *restricting) limits(cfg hypervisor.Config) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		r.err = fmt.Errorf("get limit of open files: %w", err)
	}
	for _, l := range []struct {
		name  string
		which int
		limit uint64
	}{
		{"limit open files", unix.RLIMIT_NOFILE, min(maxFiles, files.Max)},
		{"limit memory", unix.RLIMIT_DATA, maxData(cfg)},
		{"limit core", unix.RLIMIT_CORE, noCore},
		{"limit locked memory", unix.RLIMIT_MEMLOCK, 0},
		{"limit message queues", unix.RLIMIT_MSGQUEUE, 0},
	} {
		limit := &unix.Rlimit{Cur: l.limit, Max: l.limit}
		r.call(l.name, unix.SYS_PRLIMIT64, 0, l.which, unsafe.Pointer(limit), 0)
	}
}

// user: from here on no capability counts for what belongs to an id that is not mapped,
// and with it root. The directories that lead to the share are root's alone, so that is
// where the vmm starts.
func (r *restricting) user(cfg hypervisor.Config) {
	u := cfg.User
	if u == nil {
		return
	}
	if cfg.ShareDir != "" {
		r.call("enter share", unix.SYS_CHDIR, cfg.ShareDir)
	}
	uid, gid := int(u.UID), int(u.GID)
	r.call("join user namespace", unix.SYS_SETNS, int(u.Namespace.Fd()), unix.CLONE_NEWUSER)
	r.call("drop groups", unix.SYS_SETGROUPS, 0, 0)
	r.call("change group", unix.SYS_SETRESGID, gid, gid, gid)
	r.call("change user", unix.SYS_SETRESUID, uid, uid, uid)
	// Another user is not to be killed by the kernel because of this one.
	r.call("set parent-death signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL), 0, 0, 0)
}

// capabilities: the permitted set of user 0 is what its bounding set is once it
// executes a program. That of another user is the ambient set.
func (r *restricting) capabilities(kept []capability.Cap, ambient bool) {
	last, err := capability.LastCap()
	if err != nil {
		r.err = fmt.Errorf("find the kernel's capabilities: %w", err)
	}
	for c := range last + 1 {
		if !slices.Contains(kept, c) {
			r.call("drop "+c.String(), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, int(c), 0, 0, 0)
		}
	}
	r.call("drop ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	r.call("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	var mask uint32
	for _, c := range kept {
		mask |= 1 << c // the first 32
	}
	sets := &[2]unix.CapUserData{{Effective: mask, Permitted: mask}}
	if ambient {
		sets[0].Inheritable = mask
	}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	r.call("drop capabilities", unix.SYS_CAPSET, unsafe.Pointer(header), unsafe.Pointer(sets))
	for _, c := range kept {
		if ambient {
			r.call("keep "+c.String(), unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, int(c), 0, 0)
		}
	}
}
