package privileges

import (
	"strings"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// runtimeCalls are the calls of Go's runtime, and of the packages os and net on descriptors. A
// call that is not listed fails as on a kernel that does not have it, because libraries then
// use another one.
var runtimeCalls = words(`
	read write readv writev pread64 pwrite64 preadv pwritev lseek close close_range fcntl dup dup2 dup3 pipe2
	epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 poll ppoll select pselect6
	futex nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time sched_yield sched_getaffinity
	membarrier rseq set_robust_list set_tid_address arch_prctl restart_syscall getrandom uname sysinfo getrusage times
	mmap munmap mremap mprotect madvise mincore brk
	rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending sigaltstack timer_create timer_settime timer_delete setitimer
	getpid gettid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgid getpgrp getsid capget prctl
	getrlimit prlimit64 kill tkill tgkill exit exit_group wait4 waitid pidfd_open pidfd_send_signal`)

// fileCalls are for saving the state and writing the log.
var fileCalls = words(`
	openat newfstatat fstat statx statfs fstatfs readlinkat faccessat faccessat2 access getdents64 getcwd chdir fchdir umask
	renameat renameat2 unlinkat flock fsync fdatasync ftruncate fchmod fchmodat fchmodat2 fallocate fadvise64
	splice sendfile copy_file_range tee`)

// socketCalls work on open descriptors, and make new sockets of the families below.
var socketCalls = words(`
	connect accept accept4 bind listen shutdown getsockname getpeername getsockopt setsockopt socketpair
	sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg`)

var programCalls = words(`execve setsid setpgid`)

const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

func words(text string) []string { return strings.Fields(text) }

// program returns the filter.
func program(kept Kept) ([]unix.SockFilter, error) {
	calls := append(append(append(append([]string{}, runtimeCalls...), fileCalls...), socketCalls...), kept.Calls...)
	families := []uint64{unix.AF_UNIX, unix.AF_VSOCK}
	if kept.Network {
		families = append(families, unix.AF_NETLINK, unix.AF_INET, unix.AF_INET6)
	}
	if kept.Programs {
		calls = append(calls, programCalls...)
	}
	is := func(name string, n uint32, op seccomp.Operation, value uint64) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: seccomp.ArgumentConditions{{Argument: n, Operation: op, Value: value}}}
	}
	conditions := []seccomp.NameWithConditions{
		// Threads and processes, in the present namespaces only.
		is("clone", 0, seccomp.BitsNotSet, namespaces),
		is("unshare", 0, seccomp.Equal, unix.CLONE_FS),
		{Name: "ioctl", Conditions: seccomp.ArgumentConditions{
			// TIOCSTI types on a terminal. The kernel looks at 32 bits of the argument, and the
			// filter at 64.
			{Argument: 1, Operation: seccomp.NotEqual, Value: unix.TIOCSTI},
			{Argument: 1, Operation: seccomp.NotEqual, Value: unix.TIOCLINUX},
			{Argument: 1, Operation: seccomp.NotEqual, Value: unix.TIOCSETD},
			{Argument: 1, Operation: seccomp.LessOrEqual, Value: 1<<32 - 1},
		}},
	}
	for _, family := range families {
		conditions = append(conditions, is("socket", 0, seccomp.Equal, family))
	}
	policy := seccomp.Policy{
		DefaultAction: seccomp.ActionErrno,
		Syscalls: []seccomp.SyscallGroup{
			{Names: calls, Action: seccomp.ActionAllow},
			{NamesWithCondtions: conditions, Action: seccomp.ActionAllow},
		},
	}
	instructions, err := policy.Assemble()
	if err != nil {
		return nil, err
	}
	// The library can only return EPERM, after which other libraries give up because they take
	// the call for forbidden.
	for i, in := range instructions {
		if ret, ok := in.(bpf.RetConstant); ok && ret.Val&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
			instructions[i] = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
		}
	}
	return syscalls.AssembleFilter(instructions)
}
