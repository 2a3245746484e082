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

// newNamespaces are new namespaces in which only the vmm is. Its user namespace is not one of
// these.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// namespacesOf returns the namespaces to make for the vmm. The kernel refuses a new pid
// namespace to a vmm with a user namespace if the caller's pid namespace belongs to the
// container's user namespace. The vmm then sees the host processes that stand for the
// container, and has no rights to them.
func namespacesOf(cfg hypervisor.Config) uintptr {
	if cfg.User != nil {
		return newNamespaces &^ unix.CLONE_NEWPID
	}
	return newNamespaces
}

// fileCapabilities are capabilities without which QEMU's 9p server cannot work, whatever the
// container may do. The server is one process with uid 0 that acts for all users of the guest:
// it makes a file as root and gives it to its user (CHOWN), opens files of other users
// (DAC_OVERRIDE), sets their modes and times (FOWNER) and their setgid bit (FSETID). The
// guest's kernel decides which user may do what.
var fileCapabilities = []capability.Cap{capability.CAP_CHOWN, capability.CAP_DAC_OVERRIDE, capability.CAP_FOWNER, capability.CAP_FSETID}

// lentCapabilities are those capabilities of hypervisor.Config.FileCapabilities that concern
// files.
var lentCapabilities = []capability.Cap{capability.CAP_MKNOD, capability.CAP_SETFCAP}

// keptCapabilities returns all capabilities that the vmm keeps. Without a share it needs none.
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
	// maxFiles bounds the files that the vmm may have open. QEMU's 9p server closes files of
	// the guest before it reaches this number, and opens them again when they are used.
	maxFiles = 65536
	// spareMiB is how much memory the vmm may have in addition to the guest's RAM and the
	// translated code, in MiB. The 9p server keeps data for each file that the guest has looked
	// up, for as long as the guest wants, which could use up all memory of the host.
	spareMiB = 1536
	// maxThreads bounds the threads of a vmm that is not root, which are the only ones that
	// the kernel counts: up to 255 vCPUs, 64 threads that work on files, and some more.
	maxThreads = 512
	// noCore, in bytes, is too small for a core file. With 0 the kernel would still start a
	// program that takes core dumps.
	noCore = 1
)

// restrictions returns the system calls by which the vmm restricts itself before it executes
// QEMU. The first of them need CAP_SYS_ADMIN, which is gone after the last.
func restrictions(cfg hypervisor.Config) ([]nsfork.Call, error) {
	r := &restricting{}
	r.mounts(cfg.ShareDir)
	r.limits(cfg)
	r.user(cfg)
	r.capabilities(keptCapabilities(cfg), cfg.User != nil)
	return r.calls, r.err
}

// restricting collects the calls.
type restricting struct {
	calls []nsfork.Call
	err   error // the first error
}

func (r *restricting) call(name string, nr int, args ...any) {
	c, err := nsfork.NewCall(name, nr, args...)
	if err != nil && r.err == nil {
		r.err = err
	}
	r.calls = append(r.calls, c)
}

// harmlessMounts are the attributes of each mount in the vmm's namespace.
var harmlessMounts = unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}

// mounts gives the vmm a /proc of its pid namespace, with processes only, and a share in which
// the host's kernel honours no setuid bit, no device node and no executable that the guest
// makes. The guest's kernel decides about these for itself.
func (r *restricting) mounts(share string) {
	const harmless = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	r.call("leave the host's mounts", unix.SYS_MOUNT, "none", "/", "none", unix.MS_SLAVE|unix.MS_REC)
	r.call("mount /proc", unix.SYS_MOUNT, "proc", "/proc", "proc", harmless|unix.MS_RDONLY, "subset=pid")
	// Until confine there is a complete /proc above that one, because QEMU reads
	// /proc/sys/vm/overcommit_memory once, before it maps memory without reserving it.
	r.call("mount /proc for the start", unix.SYS_MOUNT, "proc", "/proc", "proc", harmless|unix.MS_RDONLY, "")
	if share == "" {
		return
	}
	// Binding makes the directory a mount, and only a mount has flags and can be moved.
	r.call("bind share "+share, unix.SYS_MOUNT, share, share, "none", unix.MS_BIND|unix.MS_REC)
	attr := harmlessMounts
	r.call("make share nosuid, nodev, noexec", unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD, share, unix.AT_RECURSIVE,
		unsafe.Pointer(&attr), int(unsafe.Sizeof(attr)))
}

// maxData returns the limit for the vmm's private writable memory (RLIMIT_DATA), in bytes.
func maxData(cfg hypervisor.Config) uint64 {
	return uint64(cfg.MemoryMiB+TranslationMiB+spareMiB) << 20
}

func (r *restricting) limits(cfg hypervisor.Config) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		r.err = fmt.Errorf("get limit of open files: %w", err)
	}
	var threads unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &threads); err != nil {
		r.err = fmt.Errorf("get limit of threads: %w", err)
	}
	if cfg.User != nil {
		threads.Max = min(maxThreads, threads.Max)
	}
	for _, l := range []struct {
		name  string
		which int
		limit uint64
	}{
		{"limit threads", unix.RLIMIT_NPROC, threads.Max},
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

// user changes the vmm to its user. After that its capabilities no longer apply to files of ids
// that are not mapped, such as root's. Only root may enter the directories that lead to the
// share, so the vmm's working directory is the share.
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
	// Changing the user clears the parent-death signal, so it is set again.
	r.call("set parent-death signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL), 0, 0, 0)
}

// capabilities reduces the vmm's capabilities to kept. At execve the permitted set of uid 0
// becomes its bounding set, and that of another user its ambient set.
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
		mask |= 1 << c // the first 32 capabilities
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
