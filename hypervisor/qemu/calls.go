package qemu

import (
	"fmt"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
)

// This file lists the system calls that a vmm may make, each with the reason, because its guest
// may have taken it over. Other calls fail with EPERM, or with the error in unanswered. The
// calls in intrusions end the vmm. filter.go makes a filter of these tables.

// callGroup is a group of system calls that are allowed for the same reason.
type callGroup struct {
	why string
	// if_ says for which machines they are allowed; nil: for all.
	if_   func(hypervisor.Config) bool
	calls []allowedCall
}

// allowedCall is a system call, by its name in the kernel's table.
type allowedCall struct {
	name string
	// only lists the arguments that the call may have; one entry must match. nil: any
	// arguments.
	only []arguments
}

// arguments is a condition on the arguments of a call. All its parts must hold.
type arguments []argument

// argument holds for a call if argument number n equals value in the bits of mask. Only the low
// 32 bits of the argument are tested.
type argument struct {
	n           int // 0 to 5
	mask, value uint32
}

const allBits = 0xffffffff

func anyOf(n int, values ...uint32) []arguments {
	var all []arguments
	for _, v := range values {
		all = append(all, arguments{{n, allBits, v}})
	}
	return all
}

func calls(names ...string) []allowedCall {
	var all []allowedCall
	for _, name := range names {
		all = append(all, allowedCall{name: name})
	}
	return all
}

const (
	// namespaceFlags are all CLONE_NEW* flags.
	namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
		unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

	// ioctlType is the mask of an ioctl number's type, which says to which subsystem the ioctl
	// belongs.
	ioctlType = 0xff00
	ioctlKVM  = 0xAE00 // linux/kvm.h
	ioctlVirt = 0xAF00 // linux/vhost.h

	// Numbers from linux/fs.h, asm-generic/ioctls.h and linux/hdreg.h that package unix does
	// not have.
	fsIOCGetVersion  = 0x80087601 // FS_IOC_GETVERSION
	fionbio          = 0x5421     // FIONBIO
	blkDiscard       = 0x1277     // BLKDISCARD
	blkDiscardZeroes = 0x127c     // BLKDISCARDZEROES
	blkZeroOut       = 0x127f     // BLKZEROOUT
	hdioGetGeo       = 0x0301     // HDIO_GETGEO
)

// The most frequent calls come first, because the filter tests them in this order.
var allowed = []callGroup{
	{
		why: "wait and wake up: main loop, virtual processors, thread pool",
		calls: calls("futex", "ppoll", "poll", "read", "write", "readv", "writev", "sendmsg", "recvmsg", "sendto", "recvfrom",
			"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "pipe2", "select", "pselect6",
			"nanosleep", "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "time", "sched_yield", "membarrier",
			"timerfd_create", "timerfd_settime", "timerfd_gettime", "restart_syscall"),
	},
	{
		why: "files of the share, which the guest works on through 9p",
		calls: calls("openat", "close", "pread64", "preadv", "pwrite64", "pwritev", "lseek", "fstat", "newfstatat", "statx",
			"statfs", "fstatfs", "getdents64", "mkdirat", "mknodat", "symlinkat", "linkat", "unlinkat", "renameat", "renameat2",
			"readlinkat", "readlink", "chmod", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "lchown", "utimensat",
			"truncate", "ftruncate", "fsync", "fdatasync", "sync_file_range", "fallocate", "copy_file_range",
			"getxattr", "lgetxattr", "fgetxattr", "setxattr", "lsetxattr", "fsetxattr",
			"listxattr", "llistxattr", "flistxattr", "removexattr", "lremovexattr", "fremovexattr",
			"faccessat", "faccessat2", "access", "fadvise64", "dup", "dup2", "dup3", "fcntl", "umask"),
	},
	{
		why:   "a file's generation, for 9p; whether standard error is a terminal; non-blocking sockets",
		calls: []allowedCall{{"ioctl", anyOf(1, fsIOCGetVersion, unix.TCGETS, fionbio)}},
	},
	{
		why:   "the guest's memory and QEMU's own, with the code that it translates",
		calls: calls("mmap", "munmap", "mprotect", "mremap", "madvise", "brk", "mincore", "msync"),
	},
	{
		why: "threads, but no processes",
		calls: append(
			calls("exit", "exit_group", "gettid", "getpid", "getppid", "tgkill", "set_robust_list", "get_robust_list", "rseq",
				"set_tid_address", "arch_prctl", "sched_getaffinity", "getcpu"),
			allowedCall{"clone", []arguments{{{0, unix.CLONE_THREAD | namespaceFlags, unix.CLONE_THREAD}}}},
			allowedCall{"prctl", anyOf(0, unix.PR_SET_NAME, unix.PR_GET_NAME, unix.PR_SET_TIMERSLACK, unix.PR_SET_VMA,
				unix.PR_SET_NO_NEW_PRIVS, unix.PR_CAPBSET_READ)},
		),
	},
	{
		why: "signals between threads",
		calls: calls("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "rt_sigpending", "rt_sigtimedwait",
			"rt_sigsuspend", "signalfd4"),
	},
	{
		why: "what the C library and GLib ask as they start",
		calls: calls("getrandom", "uname", "prlimit64", "getrlimit", "sysinfo", "getuid", "geteuid", "getgid", "getegid",
			"getresuid", "getresgid", "capget", "getcwd", "stat", "lstat", "open", "pipe", "getrusage", "times"),
	},
	{
		why:   "sockets that are open already; none can be made",
		calls: calls("shutdown", "getsockname", "getpeername", "getsockopt", "setsockopt"),
	},
	{
		why: "network cards: the options of a tap, but not its name, owner, filter or life",
		if_: func(cfg hypervisor.Config) bool { return len(cfg.NICs) > 0 },
		calls: []allowedCall{{"ioctl", anyOf(1, unix.TUNGETFEATURES, unix.TUNGETIFF, unix.TUNSETOFFLOAD, unix.TUNSETSNDBUF,
			unix.TUNGETVNETHDRSZ, unix.TUNSETVNETHDRSZ, unix.TUNSETVNETLE, unix.TUNSETVNETBE)}},
	},
	{
		why: "block devices: their size and what can be discarded or zeroed",
		if_: func(cfg hypervisor.Config) bool { return len(cfg.Disks) > 0 },
		calls: []allowedCall{{"ioctl", anyOf(1, unix.BLKGETSIZE64, unix.BLKGETSIZE, unix.BLKSSZGET, unix.BLKPBSZGET, unix.BLKROGET,
			unix.BLKSECTGET, blkDiscard, blkZeroOut, blkDiscardZeroes, hdioGetGeo)}},
	},
	{
		why:   "hardware virtualization, on descriptors of /dev/kvm",
		if_:   func(cfg hypervisor.Config) bool { return cfg.Accel == hypervisor.KVM },
		calls: []allowedCall{{"ioctl", []arguments{{{1, ioctlType, ioctlKVM}}}}},
	},
	{
		why:   "the agent channel, on the descriptor of /dev/vhost-vsock",
		if_:   func(cfg hypervisor.Config) bool { return cfg.Vsock },
		calls: []allowedCall{{"ioctl", []arguments{{{1, ioctlType, ioctlVirt}}}}},
	},
}

// pretended are calls that succeed in a clone and do nothing. When a guest returns a page, QEMU
// first makes a hole in the file behind its RAM and then drops its own copy of the page. The
// file of a clone is the template, in which a hole would destroy the RAM of all clones. A clone
// can only read the template, so the hole would fail, and QEMU would keep its copy.
var pretended = []allowedCall{
	{"fallocate", []arguments{{{1, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_PUNCH_HOLE}}}},
}

// unanswered are calls that libraries and QEMU try and can do without. They fail with this
// error.
var unanswered = map[unix.Errno][]string{
	unix.ENOSYS: {"clone3", "openat2", "memfd_create", "io_uring_setup", "io_setup"},
	unix.ENOTTY: {"ioctl"},
}

// intrusions are calls that only a vmm makes which has been taken over. They end the vmm, and
// the reason names the call. A call that some version of QEMU or of a library may try must not
// be here, because it would end a container by mistake.
var intrusions = []string{
	// other processes
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "kcmp",
	// files beyond the root
	"open_by_handle_at", "chroot", "pivot_root",
	"mount", "umount2", "fsopen", "fsconfig", "fsmount", "fspick", "open_tree", "move_mount", "mount_setattr",
	// other namespaces
	"setns", "unshare",
	// other programs and users
	"execveat", "fork", "vfork", "capset", "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid",
	"setfsuid", "setfsgid", "setgroups",
	// the host's kernel
	"kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff",
	"iopl", "ioperm", "syslog", "acct", "settimeofday", "clock_settime", "sethostname", "setdomainname",
}

// intrusionNumbers are the numbers of the intrusions, and that of execve, which is an intrusion
// once the guest runs.
var intrusionNumbers = func() map[int32]bool {
	all := map[int32]bool{unix.SYS_EXECVE: true}
	for _, name := range intrusions {
		if n, err := callNumber(name); err == nil {
			all[int32(n)] = true
		}
	}
	return all
}()

func isIntrusion(number int32) bool { return intrusionNumbers[number] }

// callNumber returns the number of a system call on x86_64.
func callNumber(name string) (uint32, error) {
	n, ok := arch.X86_64.SyscallNames[name]
	if !ok {
		return 0, fmt.Errorf("system call %q is unknown", name)
	}
	return uint32(n), nil
}

func callName(number int32) string {
	if name, ok := arch.X86_64.SyscallNumbers[int(number)]; ok {
		return name
	}
	return fmt.Sprintf("system call %d", number)
}
