package libcontainer

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// runFilter interprets the program as the kernel would. It knows only the instructions that
// deviceFilter uses.
func runFilter(t *testing.T, p bpfProgram, kind, access, major, minor uint32) bool {
	t.Helper()
	context := [3]uint32{access<<16 | kind, major, minor}
	var r [6]uint64
	for pc := 0; pc < len(p)/bpfInstruction; pc++ {
		b := p[pc*bpfInstruction:]
		dst, src := b[1]&15, b[1]>>4
		off := int(int16(binary.NativeEndian.Uint16(b[2:])))
		imm := uint64(int64(int32(binary.NativeEndian.Uint32(b[4:]))))
		switch b[0] {
		case bpfLoadWord:
			r[dst] = uint64(context[off/4])
		case bpfMove:
			r[dst] = r[src]
		case bpfMoveImm:
			r[dst] = imm
		case bpfAndImm:
			r[dst] &= imm
		case bpfShiftRight:
			r[dst] >>= imm
		case bpfJump:
			pc += off
		case bpfJumpNotImm:
			if r[dst] != imm {
				pc += off
			}
		case bpfJumpSetImm:
			if r[dst]&imm != 0 {
				pc += off
			}
		case bpfExit:
			return r[bpfResult] == 1
		default:
			t.Fatalf("instruction %d: %#x", pc, b[0])
		}
	}
	t.Fatal("the program runs off its end")
	return false
}

// defaults are the default rules in the spec's form.
var defaults = []specs.LinuxDeviceCgroup{
	{Allow: true, Access: "m"},
	{Allow: true, Type: "c", Major: number(1), Minor: number(3), Access: "rwm"},
	{Allow: true, Type: "c", Major: number(136), Access: "rwm"},
}

func number(n int64) *int64 { return &n }

// permitted says whether the rules allow the access, computed directly from the rules.
func permitted(rules []specs.LinuxDeviceCgroup, kind string, access string, major, minor int64) bool {
	for _, bit := range access {
		allowed := false
		for _, r := range rules {
			is := (r.Type == "" || r.Type == "a" || r.Type == kind) &&
				(r.Major == nil || *r.Major == -1 || *r.Major == major) && (r.Minor == nil || *r.Minor == -1 || *r.Minor == minor)
			if is && (strings.ContainsRune(r.Access, bit) || r.Access == "" && !r.Allow) {
				allowed = r.Allow
			}
		}
		if !allowed {
			return false
		}
	}
	return true
}

// TestDeviceFilterDecides compiles random rules and compares the program with permitted, for
// every access to a few devices.
func TestDeviceFilterDecides(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	kinds, numbers := []string{"", "a", "b", "c"}, []*int64{nil, number(-1), number(1), number(2), number(3), number(136)}
	accesses := []string{"", "r", "w", "m", "rw", "rm", "wm", "rwm"}
	answers := map[bool]int{}
	for range 2000 {
		rules := make([]specs.LinuxDeviceCgroup, random.IntN(6))
		for i := range rules {
			rules[i] = specs.LinuxDeviceCgroup{
				Allow: random.IntN(2) == 0, Type: kinds[random.IntN(len(kinds))],
				Major: numbers[random.IntN(len(numbers))], Minor: numbers[random.IntN(len(numbers))],
				Access: accesses[random.IntN(len(accesses))],
			}
		}
		p, err := deviceFilter(rules)
		if err != nil {
			t.Fatal(err)
		}
		for kind, name := range map[uint32]string{1: "b", 2: "c"} {
			for bits, access := range map[uint32]string{1: "m", 2: "r", 4: "w", 6: "rw", 7: "rwm"} {
				major, minor := []int64{1, 2, 4, 136}[random.IntN(4)], 1+random.Int64N(3)
				got := runFilter(t, p, kind, bits, uint32(major), uint32(minor))
				want := permitted(append(slices.Clone(rules), defaults...), name, access, major, minor)
				if got != want {
					t.Fatalf("rules %+v, %s %s %d:%d: %t, want %t", rules, name, access, major, minor, got, want)
				}
				answers[got]++
			}
		}
	}
	if answers[true] < 1000 || answers[false] < 1000 {
		t.Errorf("answers %v: too few of one kind to tell", answers)
	}
}

// TestDefaultDeviceFilter: rules that add nothing to the default ones give the default program.
func TestDefaultDeviceFilter(t *testing.T) {
	device := func(allow bool, major, minor int64) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: "c", Major: number(major), Minor: number(minor), Access: "rwm"}
	}
	none := specs.LinuxDeviceCgroup{Access: "rwm"}
	for name, tc := range map[string]struct {
		rules []specs.LinuxDeviceCgroup
		want  bool
	}{
		"no rules":         {nil, true},
		"podman":           {[]specs.LinuxDeviceCgroup{none}, true},
		"Docker":           {[]specs.LinuxDeviceCgroup{none, device(true, 1, 5), device(true, 1, 3), device(true, 5, 0), device(false, 10, 229)}, true},
		"all denied again": {[]specs.LinuxDeviceCgroup{device(true, 10, 229), none}, true},
		"one more":         {[]specs.LinuxDeviceCgroup{none, device(true, 10, 229)}, false},
		"everything":       {[]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := deviceFilter(tc.rules)
			if err != nil {
				t.Fatal(err)
			}
			if got := bytes.Equal(p, compileFilter(defaultDevices)); got != tc.want {
				t.Errorf("the default program: %t, want %t", got, tc.want)
			}
		})
	}
}

func TestDeviceFilterRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		rule specs.LinuxDeviceCgroup
		want string
	}{
		"type":   {specs.LinuxDeviceCgroup{Type: "x", Access: "r"}, `linux.resources.devices[0]: invalid cgroup device type "x"`},
		"access": {specs.LinuxDeviceCgroup{Access: "x"}, `linux.resources.devices[0]: access "x" is not made of r, w and m`},
		"number": {specs.LinuxDeviceCgroup{Major: number(-2)}, "linux.resources.devices[0]: device number -2 is out of range"},
		"large":  {specs.LinuxDeviceCgroup{Minor: number(1 << 31)}, "linux.resources.devices[0]: device number 2147483648 is out of range"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := deviceFilter([]specs.LinuxDeviceCgroup{tc.rule})
			if err == nil || err.Error() != tc.want {
				t.Errorf("error %v, want %s", err, tc.want)
			}
		})
	}
	if _, err := deviceFilter(make([]specs.LinuxDeviceCgroup, maxDeviceRules+1)); err == nil {
		t.Error("too many rules are taken")
	}
}

// TestDeviceRules tests the filter in the kernel.
func TestDeviceRules(t *testing.T) {
	root, name := cgroup2(t)
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, `cd /dev; try() { if (eval "$2") >/dev/null 2>&1; then echo "$1 yes"; else echo "$1 no"; fi; }
		try null 'echo >null'; try zero-r 'head -c1 zero'; try zero-w ': >zero'; try urandom 'head -c1 urandom'
		try mknod 'mknod x c 1 9'; try other 'mknod y c 1 11 && head -c1 y'`)
	spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}
	o := collect(t, start(t, &Config{ID: "x", Spec: spec, CgroupRoot: root, CgroupPath: name}).Init())
	equal(t, "output", o.out, "null yes\nzero-r yes\nzero-w yes\nurandom yes\nmknod yes\nother no\n")
}
