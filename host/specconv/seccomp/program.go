package seccomp

import (
	"maps"
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data, which the program reads. Arguments have 64 bits, with the low
// half first.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
	word      = 4
)

// code returns the whole program: it finds the architecture, and then by binary search among
// its system calls what to return.
func (p *policy) code() []bpf.Instruction {
	all := []bpf.Instruction{bpf.LoadAbsolute{Off: offArch, Size: word}}
	for _, audit := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386} {
		var of []*machine
		for _, m := range p.machines {
			if m.audit == audit {
				of = append(of, m)
			}
		}
		if len(of) == 0 {
			continue
		}
		block := append([]bpf.Instruction{bpf.LoadAbsolute{Off: offNumber, Size: word}}, search(p.spans(of))...)
		all = append(all,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: audit, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(block))}) // the block may be too long for a conditional jump
		all = append(all, block...)
	}
	return append(all, bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_THREAD})
}

// span is the range of numbers from first to the next span's first, for which the same code
// decides.
type span struct {
	first uint32
	code  []bpf.Instruction
}

// spans divides all 32-bit numbers among the machines of one architecture.
func (p *policy) spans(of []*machine) []span {
	at := map[uint32][]bpf.Instruction{}
	if of[0].audit == unix.AUDIT_ARCH_X86_64 {
		// A process must not bypass the rules by x32 numbers. A tracer writes -1 for a system
		// call that is to be skipped.
		at[x32Bit] = ret(unix.SECCOMP_RET_KILL_THREAD)
		at[math.MaxUint32] = ret(p.fallback)
	}
	for _, m := range of {
		gap := ret(p.fallback)
		at[m.mask] = gap
		for nr := range m.rules {
			if _, ok := m.rules[nr+1]; !ok {
				at[nr+1] = gap
			}
		}
		for nr, rules := range m.rules {
			at[nr] = p.decide(m, rules)
		}
		if m.known && p.enosys != 0 {
			at[m.last+1] = ret(p.enosys)
		}
	}
	var all []span
	for _, first := range slices.Sorted(maps.Keys(at)) {
		code := at[first]
		if n := len(all); n == 0 || len(code) > 1 || len(all[n-1].code) > 1 || all[n-1].code[0] != code[0] {
			all = append(all, span{first, code})
		}
	}
	return all
}

// search returns code that finds the span of the number in the accumulator.
func search(spans []span) []bpf.Instruction {
	if len(spans) == 1 {
		return spans[0].code
	}
	half := len(spans) / 2
	low, high := search(spans[:half]), search(spans[half:])
	var code []bpf.Instruction
	if len(low) <= math.MaxUint8 {
		code = append(code, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].first, SkipTrue: uint8(len(low))})
	} else {
		code = append(code,
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].first, SkipFalse: 1},
			bpf.Jump{Skip: uint32(len(low))})
	}
	return append(append(code, low...), high...)
}

func ret(v uint32) []bpf.Instruction { return []bpf.Instruction{bpf.RetConstant{Val: v}} }

// decide returns code that tries the rules of one system call in the profile's order.
func (p *policy) decide(m *machine, rules []rule) []bpf.Instruction {
	var code []bpf.Instruction
	for _, r := range rules {
		rest := ret(r.ret)
		for _, c := range slices.Backward(r.conditions) {
			rest = append(c.code(m.narrow, len(rest)), rest...)
		}
		code = append(code, rest...)
	}
	if last := rules[len(rules)-1]; len(last.conditions) > 0 {
		code = append(code, ret(p.fallback)...)
	}
	return code
}

var operators = []specs.LinuxSeccompOperator{
	specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
	specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
}

// condition compares one argument with value. MASKED_EQ uses value as the mask and compares
// with valueTwo.
type condition struct {
	arg             uint32
	op              specs.LinuxSeccompOperator
	value, valueTwo uint64
}

// target is where a jump of a condition leads.
type target int

const (
	next target = iota // the next instruction
	pass               // after the condition
	fail               // after the rule
)

// step is an instruction, or a jump if there is no instruction.
type step struct {
	instruction bpf.Instruction
	test        bpf.JumpTest
	value       uint32
	yes, no     target
}

// code returns the code of a condition in a rule of which rest instructions follow. It has at
// most 6 instructions, so that all jumps in a rule with 6 conditions are short.
func (c condition) code(narrow bool, rest int) []bpf.Instruction {
	steps := c.steps(narrow)
	code := make([]bpf.Instruction, len(steps))
	for i, s := range steps {
		if code[i] = s.instruction; s.instruction != nil {
			continue
		}
		left := len(steps) - 1 - i
		skip := map[target]uint8{next: 0, pass: uint8(left), fail: uint8(left + rest)}
		code[i] = bpf.JumpIf{Cond: s.test, Val: s.value, SkipTrue: skip[s.yes], SkipFalse: skip[s.no]}
	}
	return code
}

func (c condition) steps(narrow bool) []step {
	yes, no, test := pass, fail, bpf.JumpEqual
	value, mask := c.value, uint64(math.MaxUint64)
	switch c.op {
	case specs.OpNotEqual:
		yes, no = fail, pass
	case specs.OpGreaterThan:
		test = bpf.JumpGreaterThan
	case specs.OpLessEqual:
		test, yes, no = bpf.JumpGreaterThan, fail, pass
	case specs.OpGreaterEqual:
		test = bpf.JumpGreaterOrEqual
	case specs.OpLessThan:
		test, yes, no = bpf.JumpGreaterOrEqual, fail, pass
	case specs.OpMaskedEqual:
		mask, value = c.value, c.valueTwo
	}
	var steps []step
	if !narrow {
		high := uint32(value >> 32)
		steps = c.load(4, uint32(mask>>32))
		if test != bpf.JumpEqual {
			steps = append(steps, step{test: bpf.JumpGreaterThan, value: high, yes: yes, no: next})
		}
		steps = append(steps, step{test: bpf.JumpEqual, value: high, yes: next, no: no})
	}
	steps = append(steps, c.load(0, uint32(mask))...)
	return append(steps, step{test: test, value: uint32(value), yes: yes, no: no})
}

// load loads half of the argument and masks it.
func (c condition) load(off, mask uint32) []step {
	steps := []step{{instruction: bpf.LoadAbsolute{Off: offArgs + 8*c.arg + off, Size: word}}}
	if mask != math.MaxUint32 {
		steps = append(steps, step{instruction: bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask}})
	}
	return steps
}
