package specconv

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/config"
)

const (
	// guestOverheadMiB is what the guest's kernel and the agent need in addition to the
	// container's memory limit. Of 256 MiB a stock kernel of a distribution with its initramfs
	// leaves 155, of 512 MiB 403. The value is a little below 128, so that a limit of 128 MiB
	// fits into 256.
	guestOverheadMiB = 124
	// hugePagesMiB is what a kernel with at least hugePagesFromMiB of RAM keeps free in
	// addition, so that it finds huge pages.
	hugePagesMiB     = 80
	hugePagesFromMiB = 512
	// ramShare: one part in this many of RAM is used for what grows with RAM: page structures
	// (64 bytes for each page of 4096), tables, and reserves.
	ramShare = 40
	// smallestMemoryMiB is the smallest size to which a limit is rounded up.
	smallestMemoryMiB = 256

	// maxTenant bounds the name in an annotation, in bytes.
	maxTenant = 255

	// maxCPUNumber is the highest CPU number in a list. Linux on x86 has at most 8192 CPUs.
	maxCPUNumber = 8191
)

// vm decides the size of the machine. The guest's cgroup enforces the limits; the machine must
// only be large enough for them.
func (c *converter) vm(spec *specs.Spec) error {
	vm, err := annotatedVM(spec.Annotations)
	if err != nil {
		return err
	}
	if vm.MemoryMiB == 0 {
		limit, err := memoryLimit(spec.Linux.Resources)
		if err != nil {
			return err
		}
		vm.MemoryMiB = memoryClassMiB(limit, c.env.MemoryMiB)
	}
	if vm.VCPUs == 0 {
		if vm.CPUs, err = cpus(spec.Linux.Resources, c.env.CPUs); err != nil {
			return err
		}
	}
	c.plan.VM = vm
	return nil
}

// memoryLimit returns the container's memory limit in bytes, 0 if it has none.
func memoryLimit(r *specs.LinuxResources) (int64, error) {
	if r == nil {
		return 0, nil
	}
	limit, err := unifiedMemoryMax(r)
	if err == nil && limit == 0 && r.Memory != nil {
		limit = max(set(r.Memory.Limit), 0)
	}
	return limit, err
}

// unifiedMemoryMax returns memory.max of cgroup v2 in bytes, 0 if it is not set or "max".
func unifiedMemoryMax(r *specs.LinuxResources) (int64, error) {
	s, found := r.Unified["memory.max"]
	if s = strings.TrimSpace(s); !found || s == "max" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fieldErrorf("linux.resources.unified", `memory.max: %s is neither a number of bytes nor "max"`, quote(s))
	}
	return n, nil
}

// memoryClassMiB returns the guest's RAM for a limit in bytes: what the limit and the guest
// need, rounded up to a power of two. There are few sizes, so that containers with different
// limits can start from one memory template. Without a limit it returns 0, which means the
// default of the settings. A limit above the host's RAM counts as the host's RAM, because it
// limits nothing and a larger guest would only need more page structures. For the same reason
// no size is larger than a limit of the host's RAM needs.
func memoryClassMiB(limit int64, hostMiB int) int {
	if limit <= 0 {
		return 0
	}
	limitMiB := min((limit-1)>>20+1, config.MaxMemoryMiB)
	largest := int64(config.MaxMemoryMiB)
	if hostMiB > 0 {
		limitMiB = min(limitMiB, int64(hostMiB))
		largest = min(largest, neededMiB(int64(hostMiB)))
	}
	class := int64(1) << bits.Len64(uint64(neededMiB(limitMiB)-1))
	return int(max(min(class, largest), smallestMemoryMiB))
}

// neededMiB returns the RAM of a guest whose containers can use limitMiB.
func neededMiB(limitMiB int64) int64 {
	need := limitMiB + limitMiB/ramShare + guestOverheadMiB
	if need >= hugePagesFromMiB {
		need += hugePagesMiB
	}
	return need
}

// defaultMemoryStep is the unit of DefaultMemoryMiB, so that a template stays usable if the
// host's kernel reserves a little more or less RAM.
const defaultMemoryStep = 256

// DefaultMemoryMiB returns the guest's RAM for a container without a memory limit, by the
// host's RAM in MiB; 0 means unknown.
func DefaultMemoryMiB(hostMiB int) int {
	if hostMiB <= 0 {
		return 1024
	}
	return max(min(hostMiB, config.MaxDefaultMemoryMiB)/defaultMemoryStep*defaultMemoryStep, smallestMemoryMiB)
}

// Check returns an error for numbers out of range. 0 means not set.
func (vm VM) Check() error {
	for _, n := range []struct {
		name         string
		v, low, high int
	}{
		{"memory", vm.MemoryMiB, config.MinMemoryMiB, config.MaxMemoryMiB}, {"vcpus", vm.VCPUs, 1, config.MaxVCPUs}, {"nics", vm.NICs, 1, config.MaxNICs},
	} {
		if n.v != 0 && (n.v < n.low || n.v > n.high) {
			return fmt.Errorf("%s: %d is not between %d and %d", n.name, n.v, n.low, n.high)
		}
	}
	return nil
}

// Fit returns how many vCPUs the machine gets, and to how many of them, from the first on, the
// container is restricted; 0: it may use all. standard is the number for a container without a
// limit, and the least for one with a limit, so that containers with different limits start
// from one memory template. Larger numbers are rounded up to powers of two.
func (vm VM) Fit(standard int) (vcpus, restricted int) {
	if vm.VCPUs > 0 {
		return vm.VCPUs, 0
	}
	n := vm.CPUs
	if n == 0 {
		return standard, 0
	}
	vcpus = standard
	if n > standard {
		vcpus = min(1<<bits.Len(uint(n-1)), config.MaxVCPUs)
	}
	if n < vcpus {
		restricted = n
	}
	return vcpus, restricted
}

// firstCPUs returns a list of the first n CPUs. The host's cgroup decides which CPUs of the
// host they run on.
func firstCPUs(n int) string { return "0-" + strconv.Itoa(n-1) }

// cpus returns how many CPUs the container can use: its quota rounded up, or the size of its
// cpuset if that is smaller; 0 if it has neither.
func cpus(r *specs.LinuxResources, hostCPUs int) (int, error) {
	if r == nil || r.CPU == nil {
		return 0, nil
	}
	n := 0
	if quota := set(r.CPU.Quota); quota > 0 {
		period := int64(min(set(r.CPU.Period), math.MaxInt32))
		if period == 0 {
			period = 100000 // the kernel's default
		}
		n = int(min((quota-1)/period+1, config.MaxVCPUs))
	}
	count, err := cpuCount(r.CPU.Cpus)
	if err != nil {
		return 0, fieldErrorf("linux.resources.cpu.cpus", "%s", err)
	}
	if count > 0 && (n == 0 || count < n) {
		n = min(count, config.MaxVCPUs)
	}
	if hostCPUs > 0 {
		n = min(n, hostCPUs)
	}
	return n, nil
}

// CountCPUs returns the number of CPUs in a list that Resources has returned.
func CountCPUs(list string) int {
	n, err := cpuCount(list)
	if err != nil {
		return 0
	}
	return n
}

// cpuCount returns how many numbers a list such as "0-2,7" has (cpuset(7)).
func cpuCount(list string) (int, error) { return countNumbers(list, maxCPUNumber) }

// countNumbers returns how many numbers such a list has. None may be above highest.
func countNumbers(list string, highest int) (int, error) {
	list = strings.TrimSpace(list)
	if list == "" {
		return 0, nil
	}
	seen := map[int]bool{}
	// A list that names each number is not longer than this.
	if len(list) > highest*5 {
		return 0, errors.New("the list is too long")
	}
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := listNumber(from, highest)
		if err != nil {
			return 0, fmt.Errorf("%s is not a list such as 0-2,7", quote(list))
		}
		last := first
		if isRange {
			if last, err = listNumber(to, highest); err != nil || last < first {
				return 0, fmt.Errorf("%s is not a list such as 0-2,7", quote(list))
			}
		}
		for n := first; n <= last; n++ {
			seen[n] = true
		}
	}
	return len(seen), nil
}

func listNumber(s string, highest int) (int, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	if err != nil {
		return 0, err
	}
	if int(n) > highest {
		return 0, strconv.ErrRange
	}
	return int(n), nil
}

// annotationPrefix is the prefix of husk's own annotations.
const annotationPrefix = "org.huskvm."

func validateAnnotations(spec *specs.Spec) error {
	if v, found := spec.Annotations[AnnotationNetwork]; found && v != "none" {
		return fieldErrorf(key("annotations", AnnotationNetwork), `%s is not "none"`, quote(v))
	}
	for _, name := range []string{AnnotationPID, AnnotationIPC} {
		if v, found := spec.Annotations[name]; found && v != "private" {
			return fieldErrorf(key("annotations", name), `%s is not "private"`, quote(v))
		}
	}
	switch v := spec.Annotations[AnnotationIsolation]; v {
	case "", IsolationVM:
	case IsolationRunc:
		// A container that may choose never reaches this: the cli has handed it over.
		return fieldErrorf(key("annotations", AnnotationIsolation), `%q is refused: each container of this host is a virtual machine, unless the settings have isolation = "annotation"`, v)
	default:
		return fieldErrorf(key("annotations", AnnotationIsolation), "%s is none of vm, runc", quote(v))
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Annotations)) {
		switch name {
		case AnnotationNetwork, AnnotationPID, AnnotationIPC, AnnotationMemoryMiB, AnnotationVCPUs, AnnotationAccel, AnnotationNICs,
			AnnotationFreePages, AnnotationAntiSpoofing, AnnotationUncarried, AnnotationTemplateScope, AnnotationIsolation:
		default:
			if strings.HasPrefix(name, annotationPrefix) {
				// A misspelt annotation would have no effect without an error.
				return fieldErrorf(key("annotations", name), "husk knows no such annotation")
			}
		}
	}
	if _, err := annotatedWalls(spec.Annotations); err != nil {
		return err
	}
	_, err := annotatedVM(spec.Annotations)
	return err
}

// annotatedWalls returns the restrictions that annotations ask to drop.
func annotatedWalls(annotations map[string]string) (w Weakened, err error) {
	for _, a := range []struct {
		key, value string
		to         *bool
	}{
		{AnnotationAntiSpoofing, "off", &w.Spoofing}, {AnnotationUncarried, "accept", &w.Uncarried},
	} {
		v, found := annotations[a.key]
		if found && v != a.value {
			return Weakened{}, fieldErrorf(key("annotations", a.key), "%s is not %q", quote(v), a.value)
		}
		*a.to = found
	}
	return w, nil
}

// annotatedVM returns the part of a VM's size that annotations set.
func annotatedVM(annotations map[string]string) (VM, error) {
	var vm VM
	for _, n := range []struct {
		key      string
		to       *int
		min, max int
	}{
		{AnnotationMemoryMiB, &vm.MemoryMiB, config.MinMemoryMiB, config.MaxMemoryMiB},
		{AnnotationVCPUs, &vm.VCPUs, 1, config.MaxVCPUs},
		{AnnotationNICs, &vm.NICs, 1, config.MaxNICs},
	} {
		s, found := annotations[n.key]
		if !found {
			continue
		}
		v, err := strconv.Atoi(s)
		if err != nil || v < n.min || v > n.max {
			return VM{}, fieldErrorf(key("annotations", n.key), "%s is not a whole number between %d and %d", quote(s), n.min, n.max)
		}
		*n.to = v
	}
	if s, found := annotations[AnnotationAccel]; found {
		if s != "kvm" && s != "tcg" {
			return VM{}, fieldErrorf(key("annotations", AnnotationAccel), `%s is neither "kvm" nor "tcg"`, quote(s))
		}
		vm.Accel = s
	}
	if s, found := annotations[AnnotationFreePages]; found {
		if s != "true" && s != "false" {
			return VM{}, fieldErrorf(key("annotations", AnnotationFreePages), `%s is neither "true" nor "false"`, quote(s))
		}
		vm.FreePages = s
	}
	if s, found := annotations[AnnotationTemplateScope]; found {
		name, tenant := strings.CutPrefix(s, "tenant:")
		if s != "container" && (!tenant || name == "" || len(name) > maxTenant) {
			// "host" is not allowed, because the annotation can only narrow what the settings
			// allow.
			return VM{}, fieldErrorf(key("annotations", AnnotationTemplateScope), `%s is neither "container" nor "tenant:NAME", NAME of 1 to %d bytes`, quote(s), maxTenant)
		}
		vm.TemplateScope = s
	}
	return vm, nil
}
