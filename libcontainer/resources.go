package libcontainer

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// setting is one write to a cgroup file.
type setting struct{ file, value string }

// settings turns resources into writes to cgroup files, in order. It returns an error that
// names each field that cgroup version 2 or this package cannot apply.
func settings(r *specs.LinuxResources) ([]setting, error) {
	if r == nil {
		return nil, nil
	}
	if err := checkResources(r); err != nil {
		return nil, err
	}
	memory, err := memorySettings(r.Memory)
	if err != nil {
		return nil, err
	}
	all := append(memory, cpuSettings(r.CPU)...)
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0 {
		all = append(all, setting{"pids.max", limit(*r.Pids.Limit)})
	}
	for _, file := range slices.Sorted(maps.Keys(r.Unified)) {
		if strings.Contains(file, "/") || !strings.Contains(file, ".") {
			return nil, fmt.Errorf("unified resource %q must be a file name (no slashes)", file)
		}
		if strings.HasPrefix(file, "cgroup.") {
			return nil, fmt.Errorf("unified resource %q is not a resource", file)
		}
		all = append(all, setting{file, r.Unified[file]})
	}
	return all, nil
}

func checkResources(r *specs.LinuxResources) error {
	var field string
	switch b := r.BlockIO; {
	case b != nil && (b.Weight != nil || b.LeafWeight != nil || len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+
		len(b.ThrottleWriteBpsDevice)+len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0):
		field = "blockIO"
	case len(r.HugepageLimits) > 0:
		field = "hugepageLimits"
	case r.Network != nil && (r.Network.ClassID != nil || len(r.Network.Priorities) > 0):
		field = "network"
	case len(r.Rdma) > 0:
		field = "rdma"
	}
	if m := r.Memory; m != nil {
		switch {
		case m.Swappiness != nil:
			field = "memory.swappiness"
		case m.DisableOOMKiller != nil && *m.DisableOOMKiller:
			field = "memory.disableOOMKiller"
		case m.Kernel != nil && *m.Kernel > 0: //nolint:staticcheck // deprecated, and refused
			field = "memory.kernel"
		case m.KernelTCP != nil && *m.KernelTCP > 0:
			field = "memory.kernelTCP"
		}
	}
	if c := r.CPU; c != nil {
		switch {
		case c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0:
			field = "cpu.realtimeRuntime"
		case c.RealtimePeriod != nil && *c.RealtimePeriod != 0:
			field = "cpu.realtimePeriod"
		}
	}
	if field != "" {
		return fmt.Errorf("linux.resources.%s is not supported", field)
	}
	return nil
}

// limit formats a limit for a cgroup file. A negative one is "max".
func limit(v int64) string {
	if v < 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

func deref[T any](p *T) T {
	var zero T
	return *cmp.Or(p, &zero)
}

func memorySettings(m *specs.LinuxMemory) ([]setting, error) {
	if m == nil {
		return nil, nil
	}
	swap, err := swapLimit(deref(m.Swap), deref(m.Limit))
	if err != nil {
		return nil, err
	}
	var out []setting
	// 0 means "not set" in the spec. A swap of 0 is set only if memory+swap equals memory.
	if deref(m.Swap) != 0 || swap != 0 {
		out = append(out, setting{"memory.swap.max", limit(swap)})
	}
	if v := deref(m.Limit); v != 0 {
		out = append(out, setting{"memory.max", limit(v)})
	}
	if v := deref(m.Reservation); v != 0 {
		out = append(out, setting{"memory.low", limit(v)})
	}
	return out, nil
}

// swapLimit turns version 1's limit of memory+swap into version 2's limit of swap, as
// github.com/opencontainers/cgroups does.
func swapLimit(total, memory int64) (int64, error) {
	switch {
	case memory == -1 && total == 0:
		return -1, nil
	case total == -1, total == 0, memory == -1:
		return total, nil
	case memory == 0:
		return 0, errors.New("unable to set swap limit without memory limit")
	case memory < 0:
		return 0, fmt.Errorf("invalid memory value: %d", memory)
	case total < memory:
		return 0, errors.New("memory+swap limit should be >= memory limit")
	}
	return total - memory, nil
}

func cpuSettings(c *specs.LinuxCPU) []setting {
	if c == nil {
		return nil
	}
	var out []setting
	// Idle comes before weight: the kernel accepts no weight for an idle cgroup.
	if c.Idle != nil {
		out = append(out, setting{"cpu.idle", strconv.FormatInt(*c.Idle, 10)})
	}
	if v := deref(c.Shares); v != 0 {
		out = append(out, setting{"cpu.weight", strconv.FormatUint(cpuWeight(v), 10)})
	}
	quota, period := deref(c.Quota), deref(c.Period)
	if quota != 0 || period != 0 {
		out = append(out, setting{"cpu.max", cpuMax(quota, period)})
	}
	if c.Burst != nil {
		out = append(out, setting{"cpu.max.burst", strconv.FormatUint(*c.Burst, 10)})
	}
	if c.Cpus != "" {
		out = append(out, setting{"cpuset.cpus", c.Cpus})
	}
	if c.Mems != "" {
		out = append(out, setting{"cpuset.mems", c.Mems})
	}
	return out
}

// cpuMax returns a value for cpu.max. If only a quota is written the kernel keeps the old
// period; a period cannot be written without a quota, so keepQuota stands for the old one.
func cpuMax(quota int64, period uint64) string {
	s := keepQuota
	if quota != 0 {
		s = "max"
		if quota > 0 {
			s = strconv.FormatInt(quota, 10)
		}
	}
	if period != 0 {
		s += " " + strconv.FormatUint(period, 10)
	}
	return s
}

const keepQuota = "keep"

// cpuWeight maps shares (2 to 262144, default 1024) to a weight (1 to 10000, default 100) by a
// curve through these three points, as github.com/opencontainers/cgroups does.
func cpuWeight(shares uint64) uint64 {
	if shares <= 2 {
		return 1
	}
	if shares >= 262144 {
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// apply writes all settings except those for which hold returns true. hold may be nil.
func (c *cgroup) apply(all []setting, hold func(setting) bool) error {
	for _, s := range all {
		if hold != nil && hold(s) {
			continue
		}
		if rest, ok := strings.CutPrefix(s.value, keepQuota); ok && s.file == "cpu.max" {
			now, err := c.read(s.file)
			if err != nil {
				return fmt.Errorf("set cpu period: %w", err)
			}
			quota, _, _ := strings.Cut(now, " ")
			s.value = quota + rest
		}
		if err := c.write(s.file, s.value); err != nil {
			return err
		}
	}
	return nil
}

// checkMemory refuses a memory limit below what is in use. Version 1 of cgroups refuses it too,
// and runc prints these words, where version 2 would kill processes until the rest fits. With
// strict, memory that the kernel could reclaim counts as in use.
func (c *cgroup) checkMemory(all []setting, strict bool) error {
	at := slices.IndexFunc(all, func(s setting) bool { return s.file == "memory.max" })
	if at < 0 {
		return nil
	}
	limit, err := strconv.ParseUint(all[at].value, 10, 64)
	if err != nil {
		return nil //nolint:nilerr // "max" or an empty value; the kernel reports others at the write
	}
	used, err := c.readUint("memory.current", 0)
	if err != nil {
		return fmt.Errorf("read memory usage: %w", err)
	}
	least := used
	if !strict {
		stat, err := c.readKeys("memory.stat")
		if err != nil {
			return fmt.Errorf("read memory usage: %w", err)
		}
		least -= min(least, cacheOf(stat)+stat["slab_reclaimable"])
	}
	if limit >= least {
		return nil
	}
	peak, err := c.readUint("memory.peak", used)
	if err != nil {
		return fmt.Errorf("read memory usage: %w", err)
	}
	return fmt.Errorf("unable to set memory limit to %d (current usage: %d, peak usage: %d)", limit, used, peak)
}
