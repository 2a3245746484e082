package qemu

import (
	"maps"
	"slices"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
)

// Offsets in struct seccomp_data, which a filter reads, and the size of one argument, whose low
// half comes first.
const (
	offNumber, offArch, offArgs = 0, 4, 16
	argSize                     = 8
	wordSize                    = 4

	x32Bit = 0x40000000 // marks numbers of the x32 calling convention
)

// clause says what a filter returns for a call with these arguments; nil: with any.
type clause struct {
	args   arguments
	action uint32 // SECCOMP_RET_*
}

// filter is a list of allowed calls. For each system call number it has clauses, of which the
// first that matches decides.
type filter struct {
	order   []uint32
	clauses map[uint32][]clause
}

func (f *filter) add(name string, c clause) error {
	n, err := callNumber(name)
	if err != nil {
		return err
	}
	if _, known := f.clauses[n]; !known {
		f.order = append(f.order, n)
	}
	f.clauses[n] = append(f.clauses[n], c)
	return nil
}

// watch names the calls that a listener answers, with their arguments.
type watch map[string][]arguments

// newFilter returns the program for a machine. With a listener the calls in watched, execve and
// the intrusions go to the listener. Without one execve is allowed and an intrusion ends the
// process.
func newFilter(cfg hypervisor.Config, watched watch, listener bool) ([]bpf.Instruction, error) {
	f := &filter{clauses: map[uint32][]clause{}}
	intrusion, exec := uint32(unix.SECCOMP_RET_KILL_PROCESS), uint32(unix.SECCOMP_RET_ALLOW)
	if listener {
		intrusion, exec = unix.SECCOMP_RET_USER_NOTIF, unix.SECCOMP_RET_USER_NOTIF
		for _, name := range slices.Sorted(maps.Keys(watched)) {
			for _, args := range watched[name] {
				if err := f.add(name, clause{args, unix.SECCOMP_RET_USER_NOTIF}); err != nil {
					return nil, err
				}
			}
		}
	}
	if isClone(cfg) {
		for _, call := range pretended {
			for _, args := range call.only {
				if err := f.add(call.name, clause{args, refuse(0)}); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, group := range allowed {
		if group.if_ != nil && !group.if_(cfg) {
			continue
		}
		for _, call := range group.calls {
			if call.only == nil {
				call.only = []arguments{nil}
			}
			for _, args := range call.only {
				if err := f.add(call.name, clause{args, unix.SECCOMP_RET_ALLOW}); err != nil {
					return nil, err
				}
			}
		}
	}
	if !listener {
		// QEMU installs a filter of its own, which can only forbid more.
		if err := f.add("seccomp", clause{nil, unix.SECCOMP_RET_ALLOW}); err != nil {
			return nil, err
		}
	}
	for _, errno := range slices.Sorted(maps.Keys(unanswered)) {
		for _, name := range unanswered[errno] {
			if err := f.add(name, clause{nil, refuse(errno)}); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range intrusions {
		if err := f.add(name, clause{nil, intrusion}); err != nil {
			return nil, err
		}
	}
	if err := f.add("execve", clause{nil, exec}); err != nil {
		return nil, err
	}
	return f.program(), nil
}

// refuse makes a call fail with errno. With 0 the call succeeds and does nothing.
func refuse(errno syscall.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(errno) }

func load(off uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: off, Size: wordSize} }

func (f *filter) program() []bpf.Instruction {
	program := []bpf.Instruction{
		load(offArch),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		load(offNumber),
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32Bit, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
	}
	for _, n := range f.order {
		body := decide(f.clauses[n])
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: n, SkipTrue: uint8(len(body))})
		program = append(program, body...)
	}
	return append(program, bpf.RetConstant{Val: refuse(unix.EPERM)})
}

// decide returns instructions that try the clauses in order. All paths end in a return.
func decide(clauses []clause) []bpf.Instruction {
	var code []bpf.Instruction
	for _, c := range clauses {
		const perArgument = 3
		for i, a := range c.args {
			rest := perArgument*(len(c.args)-i-1) + 1
			code = append(
				code,
				load(uint32(offArgs+a.n*argSize)),
				bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: a.mask},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: a.value, SkipTrue: uint8(rest)},
			)
		}
		code = append(code, bpf.RetConstant{Val: c.action})
		if c.args == nil {
			return code
		}
	}
	return append(code, bpf.RetConstant{Val: refuse(unix.EPERM)})
}
