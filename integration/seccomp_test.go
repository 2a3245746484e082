//go:build integration

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func withSeccomp(s *specs.LinuxSeccomp, noNewPrivileges bool) specOption {
	return func(spec *specs.Spec) {
		spec.Linux.Seccomp = s
		spec.Process.NoNewPrivileges = noNewPrivileges
	}
}

// rule returns an entry of a profile for one system call.
func rule(name string, action specs.LinuxSeccompAction, errno unix.Errno, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	r := specs.LinuxSyscall{Names: []string{name}, Action: action, Args: args}
	if errno != 0 {
		r.ErrnoRet = new(uint(errno))
	}
	return r
}

// systemCalls runs a command that makes system calls, and compares their error numbers.
func (c *container) systemCalls(want []unix.Errno, calls ...string) {
	c.e.t.Helper()
	r := c.exec(append([]string{"testprog", "syscall"}, calls...)...).is(0)
	if got, want := strings.TrimSpace(r.stdout), strings.Trim(fmt.Sprint(numbers(want)), "[]"); got != want {
		c.e.t.Errorf("%q: error numbers %s, want %s", calls, got, want)
	}
}

func numbers(errnos []unix.Errno) []int {
	var n []int
	for _, e := range errnos {
		n = append(n, int(e))
	}
	return n
}

// TestSeccompForbids: a profile that forbids calls, with every action except those for tracers,
// and conditions on 64 bits and masks, for exec'd processes too, with and without no_new_privs.
func TestSeccompForbids(t *testing.T) {
	t.Parallel()
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
		Syscalls: []specs.LinuxSyscall{
			rule("mkdir", specs.ActErrno, 0),
			rule("acct", specs.ActErrno, unix.EXDEV),
			rule("personality", specs.ActErrno, unix.EIO, specs.LinuxSeccompArg{Index: 0, Value: 8, Op: specs.OpEqualTo}),
			rule("lseek", specs.ActErrno, unix.EDOM, specs.LinuxSeccompArg{Index: 1, Value: 1 << 40, Op: specs.OpGreaterThan}),
			rule("unshare", specs.ActErrno, unix.ENOLINK,
				specs.LinuxSeccompArg{Index: 0, Value: unix.CLONE_NEWUTS, ValueTwo: unix.CLONE_NEWUTS, Op: specs.OpMaskedEqual}),
			rule("sysinfo", specs.ActLog, 0),
			rule("setdomainname", specs.ActKillProcess, 0),
			rule("sethostname", specs.ActTrap, 0),
			rule("no_such_system_call", specs.ActKillProcess, 0),
		},
	}
	for _, noNewPrivileges := range []bool{false, true} {
		t.Run(fmt.Sprintf("no_new_privs %t", noNewPrivileges), func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			c := e.createStarted(e.bundle(withArgs("sleep", "1000"), withSeccomp(profile, noNewPrivileges)))
			c.systemCalls(
				[]unix.Errno{unix.EPERM, unix.EXDEV, unix.EIO, 0, unix.EDOM, unix.ESPIPE, unix.ENOLINK, unix.ENOLINK, 0, unix.EFAULT},
				num(unix.SYS_MKDIR), num(unix.SYS_ACCT), num(unix.SYS_PERSONALITY, 8), num(unix.SYS_PERSONALITY, 1<<32|0xffffffff),
				num(unix.SYS_LSEEK, 0, 1<<40+1), num(unix.SYS_LSEEK, 0, 0), num(unix.SYS_UNSHARE, unix.CLONE_NEWUTS),
				num(unix.SYS_UNSHARE, unix.CLONE_NEWUTS|unix.CLONE_NEWIPC), num(unix.SYS_UNSHARE, 0), num(unix.SYS_SYSINFO, 1))
			if r := c.exec("testprog", "syscall", num(unix.SYS_SETDOMAINNAME)); r.code != 128+int(unix.SIGSYS) {
				t.Errorf("a process killed by the filter: exit code %d", r.code)
			}
			if r := c.exec("sh", "-c", "grep Seccomp: /proc/1/status /proc/self/status"); strings.Count(r.stdout, "\t2\n") != 2 {
				t.Errorf("not all processes have the filter: %q", r.stdout)
			}
			c.stop()
		})
	}
}

// num formats a system call for testprog.
func num(call ...uint64) string {
	return strings.Join(strings.Fields(strings.Trim(fmt.Sprint(call), "[]")), ",")
}

// TestSeccompAllows: a profile that allows calls, as engines send it. Calls that it leaves out
// give EPERM, and calls newer than all of its own ENOSYS. It applies to the container's own
// process.
func TestSeccompAllows(t *testing.T) {
	t.Parallel()
	var names []string
	for _, name := range arch.X86_64.SyscallNumbers {
		if name != "mkdir" && name != "acct" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	e := newEnv(t)
	r := e.do("run", "--bundle", e.bundle(withArgs("testprog", "syscall", num(unix.SYS_MKDIR), num(unix.SYS_ACCT), "5000", num(unix.SYS_SETDOMAINNAME)),
		withSeccomp(&specs.LinuxSeccomp{
			DefaultAction: specs.ActErrno,
			Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
			Syscalls: []specs.LinuxSyscall{
				{Names: names, Action: specs.ActAllow},
				rule("acct", specs.ActErrno, unix.ENOMEDIUM),
				rule("setdomainname", specs.ActErrno, unix.ENOMEDIUM), // allowed above
			},
		}, false)), e.id()).is(0)
	if got, want := strings.TrimSpace(r.stdout), fmt.Sprintf("%d %d %d %d", unix.EPERM, unix.ENOMEDIUM, unix.ENOSYS, unix.EPERM); got != want {
		t.Errorf("error numbers %s, want %s", got, want)
	}
}

// TestSeccompIsNotForTheRuntime: the filter need not allow calls that the runtime makes between
// loading the filter and execve.
func TestSeccompIsNotForTheRuntime(t *testing.T) {
	needVM(t) // runc 1.1 fails if getcwd is forbidden
	t.Parallel()
	e := newEnv(t)
	r := e.do("run", "--bundle", e.bundle(withArgs("testprog", "syscall", num(unix.SYS_GETCWD)), withSeccomp(&specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{rule("getcwd", specs.ActErrno, unix.EXDEV)},
	}, false)), e.id()).is(0)
	if got, want := strings.TrimSpace(r.stdout), num(uint64(unix.EXDEV)); got != want {
		t.Errorf("error number %s, want %s", got, want)
	}
}

func TestSeccompKillsFirstProcess(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("testprog", "syscall", num(unix.SYS_SETDOMAINNAME)), withSeccomp(&specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{rule("setdomainname", specs.ActKillProcess, 0)},
	}, true)))
	c.exits(128 + int(unix.SIGSYS))
}
