package seccomp

import (
	"fmt"
	"maps"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// x32Bit is set in the numbers of system calls of the x32 ABI, which the kernel reports as
// x86_64.
const x32Bit = 0x40000000

// machine is an ABI by which a process can make system calls.
type machine struct {
	audit   uint32 // AUDIT_ARCH_*
	numbers map[string]int
	mask    uint32 // set in all its numbers
	narrow  bool   // arguments have 32 bits
	mux     map[string]muxed

	rules map[uint32][]rule
	last  uint32 // highest number that the profile names
	known bool   // the profile names any
}

// muxed is a system call that on x86 is also function n of another system call, given by its
// first argument.
type muxed struct {
	by string
	n  uint64
}

// x86Mux are the functions of socketcall(2) and ipc(2), from linux/net.h and linux/ipc.h.
var x86Mux = func() map[string]muxed {
	mux := map[string]muxed{}
	for i, name := range []string{
		"socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
		"sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg",
	} {
		mux[name] = muxed{"socketcall", uint64(i + 1)}
	}
	for name, n := range map[string]uint64{
		"semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12,
		"msgget": 13, "msgctl": 14, "shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24,
	} {
		mux[name] = muxed{"ipc", n}
	}
	return mux
}()

// x32Own are the system calls for which x32 has numbers of its own, from 512 on
// (arch/x86/entry/syscalls/syscall_64.tbl). The others have those of x86_64.
var x32Own = []string{
	"rt_sigaction", "rt_sigreturn", "ioctl", "readv", "writev", "recvfrom", "sendmsg", "recvmsg", "execve", "ptrace",
	"rt_sigpending", "rt_sigtimedwait", "rt_sigqueueinfo", "sigaltstack", "timer_create", "mq_notify", "kexec_load",
	"waitid", "set_robust_list", "get_robust_list", "vmsplice", "move_pages", "preadv", "pwritev", "rt_tgsigqueueinfo",
	"recvmmsg", "sendmmsg", "process_vm_readv", "process_vm_writev", "setsockopt", "getsockopt", "io_setup", "io_submit",
	"execveat", "preadv2", "pwritev2",
}

func x32Numbers() map[string]int {
	numbers := maps.Clone(arch.X86_64.SyscallNames)
	for i, name := range x32Own {
		numbers[name] = 512 + i
	}
	return numbers
}

// foreign are the spec's architectures that this machine never reports.
var foreign = map[specs.Arch]bool{
	specs.ArchARM: true, specs.ArchAARCH64: true, specs.ArchMIPS: true, specs.ArchMIPS64: true,
	specs.ArchMIPS64N32: true, specs.ArchMIPSEL: true, specs.ArchMIPSEL64: true, specs.ArchMIPSEL64N32: true,
	specs.ArchPPC: true, specs.ArchPPC64: true, specs.ArchPPC64LE: true, specs.ArchS390: true, specs.ArchS390X: true,
	specs.ArchPARISC: true, specs.ArchPARISC64: true, specs.ArchRISCV64: true,
	specs.ArchLOONGARCH64: true, specs.ArchM68K: true, specs.ArchSH: true, specs.ArchSHEB: true,
}

// machines returns those of the profile, and always this machine's own. A call by another ABI
// kills the thread, as with libseccomp.
func machines(names []specs.Arch) ([]*machine, error) {
	var x86, x32 bool
	for i, name := range names {
		switch {
		case name == specs.ArchX86:
			x86 = true
		case name == specs.ArchX32:
			x32 = true
		case name != specs.ArchX86_64 && !foreign[name]:
			return nil, fieldErrorf(fmt.Sprintf("linux.seccomp.architectures[%d]", i), "invalid architecture %s", quote(name))
		}
	}
	all := []*machine{{audit: unix.AUDIT_ARCH_X86_64, numbers: arch.X86_64.SyscallNames}}
	if x32 {
		all = append(all, &machine{audit: unix.AUDIT_ARCH_X86_64, numbers: x32Numbers(), mask: x32Bit, narrow: true})
	}
	if x86 {
		all = append(all, &machine{audit: unix.AUDIT_ARCH_I386, numbers: arch.I386.SyscallNames, narrow: true, mux: x86Mux})
	}
	for _, m := range all {
		m.rules = map[uint32][]rule{}
	}
	return all, nil
}

func (m *machine) number(name string) (uint32, bool) {
	nr, ok := m.numbers[name]
	return uint32(nr) | m.mask, ok
}

// name notes that the profile names a system call.
func (m *machine) name(name string) {
	for _, n := range []string{name, m.mux[name].by} {
		if nr, ok := m.number(n); ok {
			m.last, m.known = max(m.last, nr), true
		}
	}
}

// add adds a rule for a system call, if this machine has it. After a rule without conditions no
// other rule counts; of two such rules the first holds.
func (m *machine) add(name string, r rule) {
	if nr, ok := m.number(name); ok {
		m.insert(nr, r)
	}
	f, ok := m.mux[name]
	if !ok {
		return
	}
	nr, ok := m.number(f.by)
	if !ok {
		return
	}
	// The number of the function replaces the first condition. The other conditions compare
	// values that are not the function's arguments, because those are behind a pointer;
	// libseccomp leaves them in place too.
	conditions := []condition{{0, specs.OpEqualTo, f.n, 0}}
	for _, c := range r.conditions {
		if c.arg != 0 {
			conditions = append(conditions, c)
		}
	}
	m.insert(nr, rule{conditions, r.ret})
}

func (m *machine) insert(nr uint32, r rule) {
	have := m.rules[nr]
	switch {
	case len(have) == 1 && len(have[0].conditions) == 0:
	case len(r.conditions) == 0:
		m.rules[nr] = []rule{r}
	default:
		m.rules[nr] = append(have, r)
	}
}
