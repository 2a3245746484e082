package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/huskvm/husk/protocol"
)

// Ps lists the container's processes from the guest's /proc.
func (a *agent) Ps(_ context.Context, r *protocol.PsRequest) (*protocol.PsResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	pids, err := c.c.Pids()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	ids := c.byPID()
	resp := &protocol.PsResponse{}
	for _, pid := range pids {
		info, ok := processInfo(pid)
		if !ok {
			continue // it has ended since
		}
		info.ProcessId = ids[pid]
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

// maxCommand bounds the length of a command line in a list, in bytes. Longer ones are cut.
const maxCommand = 1024

func processInfo(pid int) (*protocol.ProcessInfo, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, false
	}
	// The name is in parentheses and may itself hold any byte, also a parenthesis.
	opening, closing := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if opening < 0 || closing < opening {
		return nil, false
	}
	fields := strings.Fields(string(stat[closing+1:]))
	if len(fields) < 2 {
		return nil, false
	}
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		return nil, false
	}
	command := "[" + string(stat[opening+1:closing]) + "]"
	if argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(argv) > 0 {
		argv = argv[:min(len(argv), maxCommand)]
		command = string(bytes.ReplaceAll(bytes.TrimRight(argv, "\x00"), []byte{0}, []byte{' '}))
	}
	return &protocol.ProcessInfo{
		GuestPid:  int32(pid),
		GuestPpid: int32(ppid),
		Command:   strings.ToValidUTF8(command, "?"),
	}, true
}

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
		OomKills:            s.Memory.OOMKills,
	}
	for k, v := range s.Memory.Stat {
		if len(resp.MemoryStat) == maxMemoryStats {
			break
		}
		resp.MemoryStat[k] = v
	}
	return resp, nil
}
