package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Return values of a filter.
const (
	eperm       = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enosys      = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	allow       = uint32(unix.SECCOMP_RET_ALLOW)
	killThread  = uint32(unix.SECCOMP_RET_KILL_THREAD)
	killProcess = uint32(unix.SECCOMP_RET_KILL_PROCESS)
)

func ptr[T any](v T) *T { return &v }

// filter is a compiled program that can be run as the kernel would.
type filter struct {
	t  *testing.T
	vm *bpf.VM
}

func compile(t *testing.T, s *specs.LinuxSeccomp) filter {
	t.Helper()
	f, err := Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	var code []bpf.Instruction
	for b := f.Program; len(b) > 0; b = b[8:] {
		code = append(code, bpf.RawInstruction{
			Op: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:]),
		}.Disassemble())
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	return filter{t, vm}
}

// call returns the filter's answer to one system call. The interpreter reads a packet in
// network byte order, and the kernel a struct in its own order.
func (f filter) call(audit, nr uint32, args ...uint64) uint32 {
	f.t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data, nr)
	binary.BigEndian.PutUint32(data[4:], audit)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	ret, err := f.vm.Run(data)
	if err != nil {
		f.t.Fatal(err)
	}
	return uint32(ret)
}

func (f filter) native(name string, args ...uint64) uint32 {
	f.t.Helper()
	nr, ok := arch.X86_64.SyscallNames[name]
	if !ok {
		f.t.Fatalf("no system call %s", name)
	}
	return f.call(unix.AUDIT_ARCH_X86_64, uint32(nr), args...)
}

func (f filter) is(what string, got, want uint32) {
	f.t.Helper()
	if got != want {
		f.t.Errorf("%s: %#x, want %#x", what, got, want)
	}
}

// engineProfile resembles the profile that engines send: hundreds of names, among them those of
// other machines, and conditions of every kind.
func engineProfile() *specs.LinuxSeccomp {
	names := []string{"breakpoint", "s390_pci_mmio_read", "no_such_call"}
	for nr, name := range arch.X86_64.SyscallNumbers {
		if nr%5 != 0 && name != "clone" && name != "personality" && name != "socket" {
			names = append(names, name)
		}
	}
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	s := &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: ptr(uint(unix.EPERM)),
		Architectures:   []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
		Syscalls: []specs.LinuxSyscall{
			{Names: names, Action: specs.ActAllow},
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: unix.AF_VSOCK, Op: specs.OpNotEqual}}},
			{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: namespaces, Op: specs.OpMaskedEqual}}},
			{Names: []string{"mount_setattr"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(unix.ENOSYS))},
		},
	}
	for _, v := range []uint64{0, 8, 0x20000, 0x20008, 0xffffffff} {
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{
			Names: []string{"personality"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: v, Op: specs.OpEqualTo}},
		})
	}
	return s
}

func TestEngineProfile(t *testing.T) {
	s := engineProfile()
	f := compile(t, s)
	last := uint32(0)
	listed := map[string]bool{}
	for _, name := range s.Syscalls[0].Names {
		listed[name] = true
		last = max(last, uint32(arch.X86_64.SyscallNames[name]))
	}
	for nr, name := range arch.X86_64.SyscallNumbers {
		want := eperm
		switch {
		case listed[name]:
			want = allow
		case name == "clone", name == "socket", name == "personality":
			want = allow // with arguments of 0
		case uint32(nr) > last:
			want = enosys
		}
		f.is(name, f.native(name), want)
	}
	f.is("a number no kernel has", f.call(unix.AUDIT_ARCH_X86_64, 5000), enosys)
	f.is("a call left out by a tracer", f.call(unix.AUDIT_ARCH_X86_64, math.MaxUint32), eperm)
	f.is("AF_VSOCK", f.native("socket", unix.AF_VSOCK), eperm)
	f.is("AF_VSOCK with high bits", f.native("socket", 1<<32|unix.AF_VSOCK), allow)
	f.is("fork", f.native("clone", uint64(unix.SIGCHLD)), allow)
	f.is("clone with a namespace", f.native("clone", unix.CLONE_NEWUSER|uint64(unix.SIGCHLD)), eperm)
	f.is("personality", f.native("personality", 0x20008), allow)
	f.is("personality", f.native("personality", 1), eperm)

	f.is("write of x86", f.call(unix.AUDIT_ARCH_I386, 4), allow)
	f.is("read of x86", f.call(unix.AUDIT_ARCH_I386, 3), eperm)
	f.is("write of x32", f.call(unix.AUDIT_ARCH_X86_64, x32Bit|1), allow)
	f.is("read of x32", f.call(unix.AUDIT_ARCH_X86_64, x32Bit), eperm)
	f.is("execve of x32", f.call(unix.AUDIT_ARCH_X86_64, x32Bit|520), allow)
	f.is("execve by its number of x86_64", f.call(unix.AUDIT_ARCH_X86_64, x32Bit|59), eperm)
	f.is("another machine", f.call(0xc00000b7, 63), killThread)
}

func TestOtherABIsAreKilled(t *testing.T) {
	f := compile(t, &specs.LinuxSeccomp{DefaultAction: specs.ActAllow})
	f.is("write", f.native("write"), allow)
	f.is("a new call", f.call(unix.AUDIT_ARCH_X86_64, 5000), allow)
	f.is("write of x86", f.call(unix.AUDIT_ARCH_I386, 4), killThread)
	f.is("write of x32", f.call(unix.AUDIT_ARCH_X86_64, x32Bit|1), killThread)
	f.is("-1", f.call(unix.AUDIT_ARCH_X86_64, math.MaxUint32), allow)
}

func TestActions(t *testing.T) {
	for _, c := range []struct {
		action specs.LinuxSeccompAction
		errno  *uint
		want   uint32
	}{
		{specs.ActKill, nil, killThread},
		{specs.ActKillThread, nil, killThread},
		{specs.ActKillProcess, nil, killProcess},
		{specs.ActTrap, nil, unix.SECCOMP_RET_TRAP},
		{specs.ActErrno, nil, eperm},
		{specs.ActErrno, ptr(uint(0)), unix.SECCOMP_RET_ERRNO},
		{specs.ActErrno, ptr(uint(4095)), unix.SECCOMP_RET_ERRNO | 4095},
		{specs.ActTrace, nil, unix.SECCOMP_RET_TRACE | 1},
		{specs.ActTrace, ptr(uint(65535)), unix.SECCOMP_RET_TRACE | 65535},
		{specs.ActLog, nil, unix.SECCOMP_RET_LOG},
	} {
		f := compile(t, &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow,
			Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: c.action, ErrnoRet: c.errno}},
		})
		f.is(string(c.action), f.native("mkdir"), c.want)
		f.is("another call", f.native("rmdir"), allow)
		if c.want == eperm {
			continue // the default action below
		}
		f = compile(t, &specs.LinuxSeccomp{
			DefaultAction: c.action, DefaultErrnoRet: c.errno,
			Syscalls: []specs.LinuxSyscall{{Names: []string{"getcwd"}, Action: specs.ActAllow}},
		})
		f.is("default "+string(c.action), f.native("read"), c.want)
		f.is("an allowed call", f.native("getcwd"), allow)
	}
}

// TestOperators compares the 32-bit code with 64-bit arithmetic.
func TestOperators(t *testing.T) {
	values := []uint64{0, 1, 5, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 5, 5 << 32, 1<<63 + 5, math.MaxUint64 - 1, math.MaxUint64}
	holds := func(op specs.LinuxSeccompOperator, a, v, two uint64) bool {
		switch op {
		case specs.OpNotEqual:
			return a != v
		case specs.OpLessThan:
			return a < v
		case specs.OpLessEqual:
			return a <= v
		case specs.OpEqualTo:
			return a == v
		case specs.OpGreaterEqual:
			return a >= v
		case specs.OpGreaterThan:
			return a > v
		}
		return a&v == two
	}
	for _, op := range operators {
		for i, v := range values {
			two := v & values[len(values)-1-i]
			index := uint(i % maxArgs)
			f := compile(t, &specs.LinuxSeccomp{
				DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86},
				Syscalls: []specs.LinuxSyscall{{
					Names: []string{"read"}, Action: specs.ActAllow,
					Args: []specs.LinuxSeccompArg{{Index: index, Value: v, ValueTwo: two, Op: op}},
				}},
			})
			for _, a := range values {
				args := make([]uint64, maxArgs)
				args[index] = a
				what := fmt.Sprintf("argument %d: %#x %s %#x, %#x", index, a, op, v, two)
				f.is(what, f.native("read", args...), map[bool]uint32{true: allow, false: eperm}[holds(op, a, v, two)])
				if a <= math.MaxUint32 {
					want := holds(op, a, v&math.MaxUint32, two&math.MaxUint32)
					f.is("x86, "+what, f.call(unix.AUDIT_ARCH_I386, 3, args...), map[bool]uint32{true: allow, false: eperm}[want])
				}
			}
		}
	}
}

func TestRulesOfOneCall(t *testing.T) {
	arg := func(i uint, v uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: i, Value: v, Op: specs.OpEqualTo}
	}
	rules := func(calls ...specs.LinuxSyscall) filter {
		return compile(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86}, Syscalls: calls})
	}
	read := func(a specs.LinuxSeccompAction, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{"read"}, Action: a, Args: args}
	}
	f := rules(read(specs.ActAllow, arg(0, 1), arg(1, 2)), read(specs.ActLog, arg(2, 3)))
	f.is("both", f.native("read", 1, 2), allow)
	f.is("one of them", f.native("read", 1, 1), eperm)
	f.is("the second rule", f.native("read", 1, 1, 3), unix.SECCOMP_RET_LOG)
	f.is("the first rule", f.native("read", 1, 2, 3), allow)

	f = rules(read(specs.ActAllow, arg(0, 1), arg(0, 2), arg(1, 7)))
	f.is("one argument twice: the first", f.native("read", 1), allow)
	f.is("one argument twice: the second", f.native("read", 2), allow)
	f.is("one argument twice: the other", f.native("read", 3, 7), allow)
	f.is("one argument twice: none", f.native("read", 3), eperm)

	f = rules(read(specs.ActAllow, arg(0, 1)), read(specs.ActLog), read(specs.ActAllow))
	f.is("the rule for all", f.native("read", 1), unix.SECCOMP_RET_LOG)

	f = rules(specs.LinuxSyscall{Names: []string{"connect", "semop"}, Action: specs.ActAllow})
	f.is("connect of x86", f.call(unix.AUDIT_ARCH_I386, 362), allow)
	f.is("socketcall connect", f.call(unix.AUDIT_ARCH_I386, 102, 3), allow)
	f.is("socketcall bind", f.call(unix.AUDIT_ARCH_I386, 102, 2), eperm)
	f.is("ipc semop", f.call(unix.AUDIT_ARCH_I386, 117, 1), allow)
}

// TestLarge: a rule for every value of one argument makes jumps longer than the 255
// instructions of a conditional jump. Beyond the largest program there is an error.
func TestLarge(t *testing.T) {
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for v := range uint64(300) {
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{
			Names: []string{"read", "ioctl"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 1, Value: v * 2, Op: specs.OpEqualTo}},
		})
	}
	f := compile(t, s)
	for v := range uint64(600) {
		want := map[bool]uint32{true: allow, false: eperm}[v%2 == 0]
		f.is(fmt.Sprint("read ", v), f.native("read", 0, v), want)
		f.is(fmt.Sprint("ioctl ", v), f.native("ioctl", 0, v), want)
	}
	s.Syscalls = append(s.Syscalls, s.Syscalls...)
	if _, err := Compile(s); err == nil || !strings.HasPrefix(err.Error(), "linux.seccomp.syscalls: the filter needs ") {
		t.Errorf("too long a filter: %v", err)
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		flags []specs.LinuxSeccompFlag
		want  uint32
	}{
		{nil, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{[]specs.LinuxSeccompFlag{}, 0},
		{[]specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"}, unix.SECCOMP_FILTER_FLAG_LOG},
		{[]specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"}, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
	} {
		f, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: c.flags})
		if err != nil || f.Flags != c.want {
			t.Errorf("%q: %+v, %v", c.flags, f, err)
		}
	}
}

func TestNoFilter(t *testing.T) {
	for _, s := range []*specs.LinuxSeccomp{nil, {}} {
		if f, err := Compile(s); f != nil || err != nil {
			t.Errorf("%+v: %v, %v", s, f, err)
		}
	}
}

// FuzzCompile: arbitrary bytes as linux.seccomp give an error, or a program that a kernel
// accepts and that answers every call.
func FuzzCompile(f *testing.F) {
	profile, err := json.Marshal(engineProfile())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(profile, uint32(1), uint64(7))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86","SCMP_ARCH_X86_64"],"syscalls":[{"names":["read","clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4,"valueTwo":2,"op":"SCMP_CMP_MASKED_EQ"}]}]}`), uint32(0), uint64(4))
	f.Fuzz(func(t *testing.T, b []byte, nr uint32, arg uint64) {
		s := &specs.LinuxSeccomp{}
		if json.Unmarshal(b, s) != nil {
			return
		}
		out, err := Compile(s)
		if err != nil || out == nil {
			return
		}
		const maxInstructions = 4096 // BPF_MAXINSNS
		if n := len(out.Program); n == 0 || n%8 != 0 || n/8 > maxInstructions {
			t.Fatalf("a program of %d bytes", n)
		}
		compile(t, s).call(unix.AUDIT_ARCH_X86_64, nr, arg, arg, arg, arg, arg, arg)
	})
}
