package libcontainer

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
)

// Stats is what the kernel has counted for a container's cgroup. A value is zero if the kernel
// does not give it, for example because a controller is missing.
type Stats struct {
	CPU    CPUStats
	Memory MemoryStats
	Pids   PidsStats
}

// CPUStats is from cpu.stat. Times are in microseconds.
type CPUStats struct {
	UsageUsec, UserUsec, SystemUsec uint64
	Periods, ThrottledPeriods       uint64
	ThrottledUsec                   uint64
}

// MemoryStats is from the memory.* files. Sizes are in bytes.
type MemoryStats struct {
	Usage     uint64
	MaxUsage  uint64 // 0 before Linux 5.19
	Limit     uint64 // math.MaxUint64: no limit
	FailCount uint64 // how often the limit was hit
	OOMKills  uint64
	SwapUsage uint64
	SwapLimit uint64 // math.MaxUint64: no limit
	Stat      map[string]uint64
}

// PidsStats is from the pids.* files.
type PidsStats struct {
	Current uint64
	Limit   uint64 // 0: no limit
}

func (c *cgroup) stats() (*Stats, error) {
	cpu, err := c.readKeys("cpu.stat")
	if err != nil {
		return nil, fmt.Errorf("read cgroup stats: %w", err)
	}
	s := &Stats{CPU: CPUStats{
		UsageUsec:        cpu["usage_usec"],
		UserUsec:         cpu["user_usec"],
		SystemUsec:       cpu["system_usec"],
		Periods:          cpu["nr_periods"],
		ThrottledPeriods: cpu["nr_throttled"],
		ThrottledUsec:    cpu["throttled_usec"],
	}}
	if s.Memory.Stat, err = c.readKeys("memory.stat"); err != nil {
		return nil, fmt.Errorf("read cgroup stats: %w", err)
	}
	events, err := c.readKeys("memory.events")
	if err != nil {
		return nil, fmt.Errorf("read cgroup stats: %w", err)
	}
	s.Memory.FailCount, s.Memory.OOMKills = events["max"], events["oom_kill"]
	for _, v := range []struct {
		to   *uint64
		file string
		none uint64
	}{
		{&s.Memory.Usage, "memory.current", 0},
		{&s.Memory.MaxUsage, "memory.peak", 0},
		{&s.Memory.Limit, "memory.max", math.MaxUint64},
		{&s.Memory.SwapUsage, "memory.swap.current", 0},
		{&s.Memory.SwapLimit, "memory.swap.max", math.MaxUint64},
		{&s.Pids.Current, "pids.current", 0},
		{&s.Pids.Limit, "pids.max", 0},
	} {
		if *v.to, err = c.readUint(v.file, v.none); err != nil {
			return nil, fmt.Errorf("read cgroup stats: %w", err)
		}
	}
	return s, nil
}

// oomKilled says whether the kernel has killed a process of the cgroup because memory was
// short.
func (c *cgroup) oomKilled() bool {
	if c == nil {
		return false
	}
	events, err := c.readKeys("memory.events")
	return err == nil && events["oom_kill"] > 0
}

// of returns the directory of the cgroup that a process is in. It may be below the container's
// own.
func (c *cgroup) of(pid int) (string, error) {
	b, err := os.ReadFile(procFile(pid, "cgroup"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return c.root + strings.TrimSuffix(path, "\n"), nil
		}
	}
	return "", fmt.Errorf("process %d has no cgroup", pid)
}

func procFile(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }
