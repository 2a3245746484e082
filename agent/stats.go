package main

import (
	"context"
	"fmt"

	"github.com/huskvm/husk/protocol"
)

// maxMemoryStats bounds the number of keys of memory.stat that are passed on.
const maxMemoryStats = 256

// Stats returns the statistics of the container's cgroup.
func (a *agent) Stats(_ context.Context, r *protocol.StatsRequest) (*protocol.StatsResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	s, err := c.c.Stats()
	if err != nil {
		return nil, fmt.Errorf("read statistics: %w", err)
	}
	resp := &protocol.StatsResponse{
		CpuUsageUsec:        s.CPU.UsageUsec,
		CpuUserUsec:         s.CPU.UserUsec,
		CpuSystemUsec:       s.CPU.SystemUsec,
		CpuPeriods:          s.CPU.Periods,
		CpuThrottledPeriods: s.CPU.ThrottledPeriods,
		CpuThrottledUsec:    s.CPU.ThrottledUsec,
		MemoryUsage:         s.Memory.Usage,
		MemoryMaxUsage:      s.Memory.MaxUsage,
		MemoryLimit:         s.Memory.Limit,
		MemoryFailcnt:       s.Memory.FailCount,
		SwapUsage:           s.Memory.SwapUsage,
		SwapLimit:           s.Memory.SwapLimit,
		MemoryStat:          make(map[string]uint64, len(s.Memory.Stat)),
		PidsCurrent:         s.Pids.Current,
		PidsLimit:           s.Pids.Limit,
	}
	for k, v := range s.Memory.Stat {
		if len(resp.MemoryStat) == maxMemoryStats {
			break
		}
		resp.MemoryStat[k] = v
	}
	return resp, nil
}
