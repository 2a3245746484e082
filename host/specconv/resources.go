package specconv

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// Bounds of the kernel for cpu.max, in microseconds.
	minCPUPeriod = 1000
	maxCPUPeriod = 1000000
	minCPUQuota  = 1000
	// maxShares is the largest value of cpu.shares in cgroup v1, which engines use.
	maxShares = 262144
	// noSwappiness is -1 in an unsigned field, which old versions of Docker send for "not set".
	noSwappiness = math.MaxUint64
	// unlimited is the value of a limit that means no limit.
	unlimited = -1
)

// guestControllers are the prefixes of files in linux.resources.unified that mean the same in
// the guest's cgroup as on the host.
var guestControllers = []string{"memory.", "cpu.", "pids."}

func validateResources(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	for _, check := range []func(*specs.LinuxResources) error{
		validateMemory, validateCPU, validatePids, validateUnified, validateDeviceRules,
	} {
		if err := check(r); err != nil {
			return err
		}
	}
	return nil
}

func validateMemory(r *specs.LinuxResources) error {
	m := r.Memory
	if m == nil {
		return nil
	}
	const field = "linux.resources.memory."
	for _, n := range []struct {
		name  string
		value *int64
	}{
		{"limit", m.Limit},
		{"swap", m.Swap},
		{"reservation", m.Reservation},
		{"kernel", m.Kernel}, //nolint:staticcheck // deprecated, and still sent
		{"kernelTCP", m.KernelTCP},
	} {
		if n.value != nil && *n.value < unlimited {
			return fieldErrorf(field+n.name, "%d is neither a number of bytes nor -1 (unlimited)", *n.value)
		}
	}
	limit, swap := set(m.Limit), set(m.Swap)
	if swap > 0 && limit <= 0 {
		return fieldErrorf(field+"swap", "unable to set swap limit without memory limit")
	}
	if swap > 0 && swap < limit {
		return fieldErrorf(field+"swap", "%d is below the memory limit %d: it counts memory and swap together", swap, limit)
	}
	if m.Swappiness != nil && *m.Swappiness > 100 && *m.Swappiness != noSwappiness {
		return fieldErrorf(field+"swappiness", "%d is not between 0 and 100", *m.Swappiness)
	}
	return nil
}

func validateCPU(r *specs.LinuxResources) error {
	c := r.CPU
	if c == nil {
		return nil
	}
	const field = "linux.resources.cpu."
	quota, period := set(c.Quota), set(c.Period)
	switch {
	case set(c.Shares) > maxShares:
		return fieldErrorf(field+"shares", "%d is above %d", *c.Shares, maxShares)
	case quota < unlimited || quota > 0 && quota < minCPUQuota:
		return fieldErrorf(field+"quota", "%d is neither at least %d microseconds nor -1 (unlimited)", quota, minCPUQuota)
	case period != 0 && (period < minCPUPeriod || period > maxCPUPeriod):
		return fieldErrorf(field+"period", "%d is not between %d and %d microseconds", period, minCPUPeriod, maxCPUPeriod)
	case set(c.Burst) > math.MaxInt64:
		return fieldErrorf(field+"burst", "%d is not a number of microseconds", *c.Burst)
	case c.Idle != nil && *c.Idle != 0 && *c.Idle != 1:
		return fieldErrorf(field+"idle", "%d is neither 0 nor 1", *c.Idle)
	}
	if _, err := cpuCount(c.Cpus); err != nil {
		return fieldErrorf(field+"cpus", "%s", err)
	}
	if _, err := cpuCount(c.Mems); err != nil {
		return fieldErrorf(field+"mems", "%s", err)
	}
	return nil
}

func validatePids(r *specs.LinuxResources) error {
	if r.Pids != nil && set(r.Pids.Limit) < unlimited {
		return fieldErrorf("linux.resources.pids.limit", "%d is neither a number of processes nor -1 (unlimited)", *r.Pids.Limit)
	}
	return nil
}

func validateUnified(r *specs.LinuxResources) error {
	for _, name := range slices.Sorted(maps.Keys(r.Unified)) {
		if strings.Contains(name, "/") {
			return fieldErrorf("linux.resources.unified", "unified resource %s must be a file name (no slashes)", quote(name))
		}
		if controller, file, found := strings.Cut(name, "."); !found || controller == "" || file == "" {
			return fieldErrorf("linux.resources.unified", "unified resource %s must be in the form CONTROLLER.PARAMETER", quote(name))
		}
	}
	_, err := unifiedMemoryMax(r)
	return err
}

func validateDeviceRules(r *specs.LinuxResources) error {
	for i, d := range r.Devices {
		field := index("linux.resources.devices", i)
		if d.Type != "" && d.Type != "a" && d.Type != "b" && d.Type != "c" {
			return fieldErrorf(field+".type", "invalid cgroup device type %s", quote(d.Type))
		}
		if strings.Trim(d.Access, "rwm") != "" {
			return fieldErrorf(field+".access", "%s is not made of r, w and m", quote(d.Access))
		}
		if set(d.Major) < unlimited || set(d.Minor) < unlimited {
			return fieldErrorf(field, "a device number is negative")
		}
	}
	return nil
}

// set returns an optional number. 0 means "not set", because engines that fill in all fields
// send it.
func set[T int64 | uint64](p *T) T {
	if p == nil {
		return 0
	}
	return *p
}

// nonZero returns nil for an optional number that is 0.
func nonZero[T int64 | uint64](p *T) *T {
	if set(p) == 0 {
		return nil
	}
	return p
}

// guestResources returns the limits and device rules that the guest's cgroup enforces; nil if
// there are none. Rules for block devices have the host's numbers, which the agent replaces by
// the guest's.
func guestResources(r *specs.LinuxResources) (guest *specs.LinuxResources, dropped []Dropped) {
	if r == nil {
		return nil, nil
	}
	memory, dropped := guestMemory(r.Memory)
	guest = &specs.LinuxResources{
		Memory:  memory,
		CPU:     guestCPU(r.CPU),
		Unified: guestUnified(r.Unified),
		Devices: guestDeviceRules(r.Devices),
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		guest.Pids = &specs.LinuxPids{Limit: r.Pids.Limit}
	}
	if guest.Memory == nil && guest.CPU == nil && guest.Pids == nil && guest.Unified == nil && len(guest.Devices) == 0 {
		return nil, dropped
	}
	return guest, dropped
}

func guestMemory(m *specs.LinuxMemory) (_ *specs.LinuxMemory, dropped []Dropped) {
	if m == nil {
		return nil, nil
	}
	const field = "linux.resources.memory."
	//nolint:staticcheck // deprecated, and still sent
	if set(m.Kernel) > 0 {
		dropped = append(dropped, Dropped{field + "kernel", "Linux limits it no more"})
	}
	if m.UseHierarchy != nil && !*m.UseHierarchy {
		dropped = append(dropped, Dropped{field + "useHierarchy", "the guest's cgroups are always hierarchical"})
	}
	guest := specs.LinuxMemory{
		Limit:       nonZero(m.Limit),
		Swap:        nonZero(m.Swap),
		Reservation: nonZero(m.Reservation),
	}
	if guest == (specs.LinuxMemory{}) {
		return nil, dropped
	}
	guest.CheckBeforeUpdate = m.CheckBeforeUpdate
	return &guest, dropped
}

// guestCPU leaves out the numbers of host CPUs. VM.Fit uses how many they are, and the host's
// cgroup enforces which they are.
func guestCPU(c *specs.LinuxCPU) *specs.LinuxCPU {
	if c == nil {
		return nil
	}
	guest := specs.LinuxCPU{
		Shares: nonZero(c.Shares),
		Quota:  nonZero(c.Quota),
		Period: nonZero(c.Period),
		Burst:  nonZero(c.Burst),
		Idle:   c.Idle,
	}
	if guest == (specs.LinuxCPU{}) {
		return nil
	}
	return &guest
}

func guestUnified(unified map[string]string) map[string]string {
	var guest map[string]string
	for _, name := range slices.Sorted(maps.Keys(unified)) {
		if !slices.ContainsFunc(guestControllers, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		if guest == nil {
			guest = map[string]string{}
		}
		guest[name] = unified[name]
	}
	return guest
}

// Resources checks the resources of update. It returns them for the host, and what the agent
// gets. now are the container's present limits. A caller of update must learn if a change is
// not made, so fields that create drops are errors here, except device rules: engines always
// send them, and no runtime changes them in an update.
func Resources(r, now *specs.LinuxResources) (host, guest *specs.LinuxResources, err error) {
	host = &specs.LinuxResources{}
	if r != nil {
		*host = *r
	}
	host.Devices = nil
	host.Memory = withLimit(host.Memory, now)
	if err := validateResources(host); err != nil {
		return nil, nil, err
	}
	guest, dropped := guestResources(host)
	if len(dropped) > 0 {
		return nil, nil, NotUpdated(dropped[0])
	}
	if guest == nil {
		guest = &specs.LinuxResources{}
	}
	c := host.CPU
	if c == nil || c.Cpus == "" && c.Burst == nil {
		return host, guest, nil
	}
	if guest.CPU == nil {
		guest.CPU = &specs.LinuxCPU{}
	}
	guest.CPU.Burst = c.Burst // 0 removes the burst
	if c.Cpus != "" {
		n, err := cpuCount(c.Cpus)
		if err != nil {
			return nil, nil, fieldErrorf("linux.resources.cpu.cpus", "%s", err)
		}
		guest.CPU.Cpus = firstCPUs(n)
	}
	return host, guest, nil
}

// NotUpdated returns the error for a field that create would have dropped.
func NotUpdated(d Dropped) error {
	return fmt.Errorf("update is not supported: %s: %s", d.Field, d.Why)
}

// withLimit adds the memory limit to a limit of memory and swap together, which means nothing
// without it.
func withLimit(m *specs.LinuxMemory, now *specs.LinuxResources) *specs.LinuxMemory {
	if m == nil || set(m.Swap) == 0 || set(m.Limit) != 0 || now == nil || now.Memory == nil {
		return m
	}
	with := *m
	with.Limit = now.Memory.Limit
	return &with
}
