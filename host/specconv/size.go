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
	// guestOverheadMiB is what the guest kernel and the agent need beside the
	// container's memory limit: of 256 MiB a stock distribution kernel with its
	// initramfs leaves 155, of 512 it leaves 403. A little less than 128, so that a
	// limit of 128 MiB fits into 256.
	guestOverheadMiB = 124
	// hugePagesMiB is what a kernel keeps free besides, so that it finds huge pages,
	// when it has hugePagesFromMiB of RAM or more.
	hugePagesMiB     = 80
	hugePagesFromMiB = 512
	// ramShare is the part of RAM that grows with it: page structures (64 bytes for
	// each page of 4096), tables that are sized by RAM, and reserves.
	ramShare = 40
	// smallestMemoryMiB is the smallest size a limit is rounded up to.
	smallestMemoryMiB = 256

	// maxTenant bounds the name in an annotation, in bytes.
	maxTenant = 255

	// maxCPUNumber is the highest CPU number a list may name: Linux on x86 has
	// at most 8192 CPUs.
	maxCPUNumber = 8191
)

// vm sizes the machine. The limits themselves are enforced by the guest's
// cgroup; the machine only has to be large enough for them.
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

// memoryLimit is the container's limit in bytes, 0 if it has none.
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

// unifiedMemoryMax is memory.max of cgroup v2 in bytes, 0 if not given or "max".
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

// memoryClassMiB is the guest's RAM for a limit in bytes: what the limit and the
// guest itself need, rounded up to a power of two. Few sizes, so that containers
// with different limits can start from the same memory template. It is 0 (the
// settings' default) without a limit. A limit above the host's RAM counts as the
// host's RAM: it limits nothing, and a larger guest would cost page structures. For
// the same reason no class is larger than what a limit of the host's RAM needs.
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

// neededMiB is the RAM of a guest whose containers can have limitMiB of it.
func neededMiB(limitMiB int64) int64 {
	need := limitMiB + limitMiB/ramShare + guestOverheadMiB
	if need >= hugePagesFromMiB {
		need += hugePagesMiB
	}
	return need
}

// defaultMemoryStep keeps a template usable for a kernel that reserves a little
// more or less of the host's RAM.
const defaultMemoryStep = 256

// DefaultMemoryMiB is the guest's RAM for a container without a memory limit, by
// the host's RAM in MiB; 0: unknown.
func DefaultMemoryMiB(hostMiB int) int {
	if hostMiB <= 0 {
		return 1024
	}
	return max(min(hostMiB, config.MaxDefaultMemoryMiB)/defaultMemoryStep*defaultMemoryStep, smallestMemoryMiB)
}

// Check says whether the numbers are in range; 0 is none.
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

// Fit returns how many vCPUs the machine gets, and to how many of those, the first ones,
// the container is restricted; 0: it may use all. standard is the number without a limit,
// and the least there are of a machine for a container with one: containers with
// different limits then start from one memory template. More come as powers of
// two.
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

// firstCPUs is the list of the first n CPUs. Which CPUs of the host they are is
// the host's cgroup's to say.
func firstCPUs(n int) string { return "0-" + strconv.Itoa(n-1) }

// cpus is how many CPUs the container can keep busy: its quota rounded up, or
// its set of CPUs if that is smaller; 0 with neither.
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

// CountCPUs is the number of CPUs in a list that Resources has made.
func CountCPUs(list string) int {
	n, err := cpuCount(list)
	if err != nil {
		return 0
	}
	return n
}

// cpuCount counts the numbers of a list such as "0-2,7", as cpuset(7) has it.
func cpuCount(list string) (int, error) { return countNumbers(list, maxCPUNumber) }

// countNumbers counts those of such a list, none of which may be above highest.
func countNumbers(list string, highest int) (int, error) {
	list = strings.TrimSpace(list)
	if list == "" {
		return 0, nil
	}
	seen := map[int]bool{}
	// A list that names each number alone is no longer than this.
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

// annotationPrefix marks the annotations that are husk's own.
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
		// One that may choose never comes here: the cli has handed it over.
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
				// A misspelt setting must not pass for set.
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

// annotatedWalls are the walls that annotations ask to do without.
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

// annotatedVM is the part of a VM's size that annotations say.
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
			// Not "host": the annotation makes narrower what the settings allow.
			return VM{}, fieldErrorf(key("annotations", AnnotationTemplateScope), `%s is neither "container" nor "tenant:NAME", NAME of 1 to %d bytes`, quote(s), maxTenant)
		}
		vm.TemplateScope = s
	}
	return vm, nil
}
