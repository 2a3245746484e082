package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/huskvm/husk/agent/protocol"
)

// Ps lists the container's processes as the guest's /proc shows them.
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
			continue // ended since
		}
		info.ProcessId = ids[pid]
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

// maxCommand bounds one command line in a list, in bytes.
const maxCommand = 1024

func processInfo(pid int) (*protocol.ProcessInfo, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, false
	}
	// The name is in parentheses and may itself hold any byte.
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

func (a *agent) Stats(context.Context, *protocol.StatsRequest) (*protocol.StatsResponse, error) {
	return nil, nil
}
