package libcontainer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// In version 2 of cgroups a program decides which devices may be opened and made:
// it gets the access, the type and the numbers, and answers 1 or 0.

// maxDeviceRules keeps the program far below the kernel's million of
// instructions.
const maxDeviceRules = 4096

// defaultDevices are what every container may do, whatever its rules say, as
// with runc: make any node, and use the devices each has in its /dev.
var defaultDevices = []deviceMatch{
	{true, every, every, every, unix.BPF_DEVCG_ACC_MKNOD},
	{true, unix.BPF_DEVCG_DEV_CHAR, 1, 3, allAccess},       // null
	{true, unix.BPF_DEVCG_DEV_CHAR, 1, 5, allAccess},       // zero
	{true, unix.BPF_DEVCG_DEV_CHAR, 1, 7, allAccess},       // full
	{true, unix.BPF_DEVCG_DEV_CHAR, 1, 8, allAccess},       // random
	{true, unix.BPF_DEVCG_DEV_CHAR, 1, 9, allAccess},       // urandom
	{true, unix.BPF_DEVCG_DEV_CHAR, 5, 0, allAccess},       // tty
	{true, unix.BPF_DEVCG_DEV_CHAR, 5, 2, allAccess},       // ptmx
	{true, unix.BPF_DEVCG_DEV_CHAR, 136, every, allAccess}, // pts
}

const allAccess = unix.BPF_DEVCG_ACC_MKNOD | unix.BPF_DEVCG_ACC_READ | unix.BPF_DEVCG_ACC_WRITE

// Instructions of eBPF that the program is made of: class and operation.
const (
	bpfLoadWord   = 0x61 // dst = *(u32 *)(src + off)
	bpfMove       = 0xbf // dst = src
	bpfMoveImm    = 0xb7
	bpfAndImm     = 0x57
	bpfShiftRight = 0x77
	bpfJump       = 0x05
	bpfJumpNotImm = 0x55 // if dst != imm
	bpfJumpSetImm = 0x45 // if dst & imm
	bpfExit       = 0x95
)

// Registers.
const (
	bpfResult  = 0
	bpfContext = 1
	bpfType    = 2
	bpfWanted  = 3 // the bits of access that no rule has decided yet
	bpfMajor   = 4
	bpfMinor   = 5
)

// bpfProgram is a list of struct bpf_insn.
type bpfProgram []byte

const bpfInstruction = 8

func (p *bpfProgram) add(code, dst, src byte, off int16, imm int32) {
	b := append(*p, code, src<<4|dst)
	b = binary.NativeEndian.AppendUint16(b, uint16(off))
	*p = binary.NativeEndian.AppendUint32(b, uint32(imm))
}

// deviceFilter compiles rules, which defaultDevices follow. Each bit of the access
// asked for is decided by the last rule about it, and denied without one. Rules
// that mean the same to a container give the same program in the cases that most
// have.
func deviceFilter(rules []specs.LinuxDeviceCgroup) (bpfProgram, error) {
	if len(rules) > maxDeviceRules {
		return nil, fmt.Errorf("linux.resources.devices: %d rules are more than %d", len(rules), maxDeviceRules)
	}
	var all []deviceMatch
	for i := range rules {
		m, err := newDeviceMatch(&rules[i])
		if err != nil {
			return nil, fmt.Errorf("linux.resources.devices[%d]: %w", i, err)
		}
		all = append(all, m)
	}
	return compileFilter(append(essentialRules(all), defaultDevices...)), nil
}

// deviceMatch is a rule in the program's terms.
type deviceMatch struct {
	allow              bool
	kind, major, minor int32
	bits               int32
}

// every stands for all numbers, or both kinds.
const every = -1

func newDeviceMatch(r *specs.LinuxDeviceCgroup) (m deviceMatch, err error) {
	m.allow = r.Allow
	switch r.Type {
	case "", "a":
		m.kind = every
	case "b":
		m.kind = unix.BPF_DEVCG_DEV_BLOCK
	case "c":
		m.kind = unix.BPF_DEVCG_DEV_CHAR
	default:
		return m, fmt.Errorf("invalid cgroup device type %q", r.Type)
	}
	for _, n := range []struct {
		from *int64
		to   *int32
	}{{r.Major, &m.major}, {r.Minor, &m.minor}} {
		switch {
		case n.from == nil:
			*n.to = every
		case *n.from < every || *n.from > math.MaxInt32:
			return m, fmt.Errorf("device number %d is out of range", *n.from)
		default:
			*n.to = int32(*n.from)
		}
	}
	m.bits, err = deviceAccess(r)
	return m, err
}

// covers says whether all that o is about is what m is about, overlaps whether
// some of it is.
func (m *deviceMatch) covers(o *deviceMatch) bool {
	is := func(m, o int32) bool { return m == every || m == o }
	return is(m.kind, o.kind) && is(m.major, o.major) && is(m.minor, o.minor) && o.bits&^m.bits == 0
}

func (m *deviceMatch) overlaps(o *deviceMatch) bool {
	is := func(m, o int32) bool { return m == every || o == every || m == o }
	return is(m.kind, o.kind) && is(m.major, o.major) && is(m.minor, o.minor) && o.bits&m.bits != 0
}

// essentialRules leaves out rules without an effect: what one default decides, and
// what is denied that nothing has allowed, as in engines' lists. What it removes
// before a rule that denies everything is of no more effect either.
func essentialRules(rules []deviceMatch) []deviceMatch {
	everything := deviceMatch{kind: every, major: every, minor: every, bits: allAccess}
	var kept []deviceMatch
	for i := range rules {
		r := &rules[i]
		if !r.allow && r.covers(&everything) {
			kept = nil
			continue
		}
		decided := slices.ContainsFunc(defaultDevices, func(d deviceMatch) bool { return d.covers(r) })
		if decided || !r.allow && !slices.ContainsFunc(kept, func(k deviceMatch) bool { return k.allow && k.overlaps(r) }) {
			continue
		}
		kept = append(kept, *r)
	}
	return kept
}

func compileFilter(rules []deviceMatch) bpfProgram {
	var p bpfProgram
	p.add(bpfLoadWord, bpfType, bpfContext, 0, 0) // access in the upper half
	p.add(bpfMove, bpfWanted, bpfType, 0, 0)
	p.add(bpfShiftRight, bpfWanted, 0, 0, 16)
	p.add(bpfAndImm, bpfType, 0, 0, 0xffff)
	p.add(bpfLoadWord, bpfMajor, bpfContext, 4, 0)
	p.add(bpfLoadWord, bpfMinor, bpfContext, 8, 0)
	for i := len(rules) - 1; i >= 0; i-- {
		p.addRule(&rules[i])
	}
	p.add(bpfMoveImm, bpfResult, 0, 0, 0)
	p.add(bpfExit, 0, 0, 0, 0)
	return p
}

func (p *bpfProgram) addRule(r *deviceMatch) {
	type test struct {
		register byte
		value    int32
	}
	tests := slices.DeleteFunc([]test{{bpfType, r.kind}, {bpfMajor, r.major}, {bpfMinor, r.minor}},
		func(t test) bool { return t.value == every })
	// What the rule does where it matches: four instructions.
	const body = 4
	for i, t := range tests {
		p.add(bpfJumpNotImm, t.register, 0, int16(len(tests)-1-i+body), t.value)
	}
	if r.allow {
		p.add(bpfAndImm, bpfWanted, 0, 0, ^r.bits)
		p.add(bpfJumpNotImm, bpfWanted, 0, 2, 0)
		p.add(bpfMoveImm, bpfResult, 0, 0, 1)
	} else {
		p.add(bpfJumpSetImm, bpfWanted, 0, 1, r.bits)
		p.add(bpfJump, 0, 0, 2, 0)
		p.add(bpfMoveImm, bpfResult, 0, 0, 0)
	}
	p.add(bpfExit, 0, 0, 0, 0)
}

// deviceAccess: a rule that denies without saying what denies all.
func deviceAccess(r *specs.LinuxDeviceCgroup) (bits int32, err error) {
	access := r.Access
	if access == "" && !r.Allow {
		return allAccess, nil
	}
	if strings.Trim(access, "rwm") != "" {
		return 0, fmt.Errorf("access %q is not made of r, w and m", access)
	}
	for letter, bit := range map[string]int32{
		"r": unix.BPF_DEVCG_ACC_READ, "w": unix.BPF_DEVCG_ACC_WRITE, "m": unix.BPF_DEVCG_ACC_MKNOD,
	} {
		if strings.Contains(access, letter) {
			bits |= bit
		}
	}
	return bits, nil
}

// loadTries is how often a program is given to the kernel, which seldom takes two.
const loadTries = 10

// loadFilter gives the program to the kernel.
func loadFilter(p bpfProgram) (*os.File, error) {
	license := []byte("Apache-2.0\x00")
	// Their addresses are in what the kernel reads, where Go does not see them.
	var pins runtime.Pinner
	pins.Pin(&p[0])
	pins.Pin(&license[0])
	defer pins.Unpin()
	attr := struct {
		kind, count      uint32
		program, license uint64
		_                [96]byte // the rest, all zero
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(p) / bpfInstruction),
		program: uint64(uintptr(unsafe.Pointer(&p[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	// The kernel gives its check of the program up for a signal, such as those that Go's
	// runtime sends its threads, and says EAGAIN.
	for try := 1; errors.Is(err, unix.EAGAIN) && try < loadTries; try++ {
		fd, err = bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	}
	if err != nil {
		return nil, fmt.Errorf("load device filter (the kernel needs CONFIG_CGROUP_BPF): %w", err)
	}
	return os.NewFile(uintptr(fd), "device filter"), nil
}

// filterDevices puts the program on the cgroup, for as long as that exists, in the
// place of another one, if there is one.
func (c *cgroup) filterDevices(p bpfProgram, other *os.File) error {
	f, err := loadFilter(p)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := c.attachFilter(unix.BPF_PROG_ATTACH, f); err != nil {
		return err
	}
	if other == nil {
		return nil
	}
	// Both have to agree, so from now on it could only forbid what is allowed.
	return c.attachFilter(unix.BPF_PROG_DETACH, other)
}

func (c *cgroup) attachFilter(command int, f *os.File) error {
	attr := struct{ cgroup, program, kind, flags uint32 }{uint32(c.file.Fd()), uint32(f.Fd()), unix.BPF_CGROUP_DEVICE, 0}
	if command == unix.BPF_PROG_ATTACH {
		// Cgroups that the container makes may have filters as well.
		attr.flags = unix.BPF_F_ALLOW_MULTI
	}
	if _, err := bpf(command, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("attach device filter: %w", err)
	}
	return nil
}
