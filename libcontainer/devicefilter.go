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

// A cgroup of version 2 has no list of device rules. An eBPF program decides about each access
// to a device: it gets the access, the type and the numbers of the device, and returns 1
// (allow) or 0 (deny). This file compiles the spec's rules to such a program.

// maxDeviceRules keeps the program far below the kernel's limit of a million instructions.
const maxDeviceRules = 4096

// defaultDevices are allowed to every container whatever its rules say, as with runc: making
// any node, and using the devices of its default /dev.
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

// The eBPF instructions of the program: class and operation.
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
	bpfWanted  = 3 // the bits of the access that no rule has decided yet
	bpfMajor   = 4
	bpfMinor   = 5
)

// bpfProgram is the bytes of consecutive struct bpf_insn.
type bpfProgram []byte

const bpfInstruction = 8

func (p *bpfProgram) add(code, dst, src byte, off int16, imm int32) {
	b := append(*p, code, src<<4|dst)
	b = binary.NativeEndian.AppendUint16(b, uint16(off))
	*p = binary.NativeEndian.AppendUint32(b, uint32(imm))
}

// deviceFilter compiles rules, followed by defaultDevices. Each bit of the requested access is
// decided by the last rule that matches it; without one it is denied. Rules without an effect
// are left out, so that the lists of common engines give the program of the default filter,
// which a prepared container has already.
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

// deviceMatch is one rule with the kernel's numbers.
type deviceMatch struct {
	allow              bool
	kind, major, minor int32
	bits               int32
}

// every stands for any number, or for both kinds of device.
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

// covers says whether m matches everything that o matches, overlaps whether it matches some of
// that.
func (m *deviceMatch) covers(o *deviceMatch) bool {
	is := func(m, o int32) bool { return m == every || m == o }
	return is(m.kind, o.kind) && is(m.major, o.major) && is(m.minor, o.minor) && o.bits&^m.bits == 0
}

func (m *deviceMatch) overlaps(o *deviceMatch) bool {
	is := func(m, o int32) bool { return m == every || o == every || m == o }
	return is(m.kind, o.kind) && is(m.major, o.major) && is(m.minor, o.minor) && o.bits&m.bits != 0
}

// essentialRules leaves out the rules without an effect: those that a default rule decides
// anyway, and those that deny what no rule before has allowed. Leaving a rule out before one
// that denies everything changes nothing either.
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
	p.add(bpfLoadWord, bpfType, bpfContext, 0, 0) // the access is in the upper 16 bits
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
	// body is the number of instructions that follow the match of one rule.
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

// deviceAccess returns the access bits of a rule. A rule that denies and names no access denies
// all.
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

// loadTries is how often the program is given to the kernel. More than two attempts are seldom
// needed.
const loadTries = 10

// loadFilter loads the program into the kernel and returns its descriptor.
func loadFilter(p bpfProgram) (*os.File, error) {
	license := []byte("Apache-2.0\x00")
	// The kernel reads these addresses from a struct in which Go's garbage collector does not
	// see pointers, so the memory is pinned.
	var pins runtime.Pinner
	pins.Pin(&p[0])
	pins.Pin(&license[0])
	defer pins.Unpin()
	attr := struct {
		kind, count      uint32
		program, license uint64
		_                [96]byte // the rest of the kernel's union, all zero
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(p) / bpfInstruction),
		program: uint64(uintptr(unsafe.Pointer(&p[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	// A signal, such as those that Go's runtime sends to its own threads, interrupts the
	// kernel's check of the program, and bpf(2) returns EAGAIN.
	for try := 1; errors.Is(err, unix.EAGAIN) && try < loadTries; try++ {
		fd, err = bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	}
	if err != nil {
		return nil, fmt.Errorf("load device filter (the kernel needs CONFIG_CGROUP_BPF): %w", err)
	}
	return os.NewFile(uintptr(fd), "device filter"), nil
}

// filterDevices attaches the program to the cgroup, which keeps it, and detaches other, if it
// is not nil.
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
	// With both attached an access must pass both, so the old one could only forbid what the
	// new one allows.
	return c.attachFilter(unix.BPF_PROG_DETACH, other)
}

func (c *cgroup) attachFilter(command int, f *os.File) error {
	attr := struct{ cgroup, program, kind, flags uint32 }{uint32(c.file.Fd()), uint32(f.Fd()), unix.BPF_CGROUP_DEVICE, 0}
	if command == unix.BPF_PROG_ATTACH {
		// Cgroups that the container makes below may have filters of their own.
		attr.flags = unix.BPF_F_ALLOW_MULTI
	}
	if _, err := bpf(command, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("attach device filter: %w", err)
	}
	return nil
}
