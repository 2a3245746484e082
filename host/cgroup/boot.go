package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// bootSuffix is appended to the container's group to name the group that counts the machine's
// memory while it boots.
const bootSuffix = ".husk-boot"

// PlanBootGroup names a boot group: a group with the same parent that counts the machine's
// memory from JoinBootGroup to MakeRoom. A created container's memory limit can then be exactly
// what config.json asks for: engines and tests read it, and the machine would exceed it.
// PlanBootGroup makes no group yet. Call it before the group is saved, and only if there is a
// memory limit.
//
// Only cgroup v1 can count memory separately from the rest. With v2 PlanBootGroup does nothing,
// and limits have room for the machine from the beginning.
func (g *Group) PlanBootGroup() {
	dir, found := g.Paths["memory"]
	if found && g.Unit == nil {
		g.Boot = dir + bootSuffix
	}
}

// JoinBootGroup makes the boot group and moves a process into it, and with it what the process
// starts later. Call it after Join. Without PlanBootGroup it does nothing.
func (g *Group) JoinBootGroup(pid int) error {
	if g.Boot == "" {
		return nil
	}
	if _, skipped := g.Skipped["memory"]; skipped {
		g.Boot = ""
		return nil
	}
	if err := os.Mkdir(g.Boot, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make cgroup for the start: %w", err)
	}
	if err := cgroups.WriteCgroupProc(g.Boot, pid); err != nil {
		return fmt.Errorf("join cgroup for the start: %w", err)
	}
	return nil
}

// LeaveBootGroup moves one process back into the container's group: the one whose pid engines
// know. The machine that it has started stays in the boot group.
func (g *Group) LeaveBootGroup(pid int) error {
	if g.Boot == "" {
		return nil
	}
	if err := cgroups.WriteCgroupProc(g.Paths["memory"], pid); err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	return nil
}

// MakeRoom is called before a process of the container runs. It changes the limits so that they
// have room for the machine, and moves everything that is in the boot group into the
// container's. Memory that was charged before stays charged to the boot group's parent. A
// second call does nothing.
func (g *Group) MakeRoom(ctx context.Context) error {
	if g.Limits == nil {
		return nil
	}
	const created = false
	l := g.Limits
	r := &specs.LinuxResources{Pids: l.Pids}
	if m := l.Memory; m != nil {
		r.Memory = &specs.LinuxMemory{Limit: m.Limit, Swap: m.Swap}
	}
	if g.IsV2() {
		r = nil // v2 has the room already
	}
	if err := g.Change(r, created).Apply(); err != nil {
		return err
	}
	if err := g.allowKiller(); err != nil {
		return err
	}
	return g.release(ctx)
}

// allowKiller undoes the setting disableOOMKiller. Without the OOM killer a machine at its
// limit would stop for ever, and so would the process that tries to end it.
func (g *Group) allowKiller() error {
	dir, found := g.Paths["memory"]
	if m := g.Limits.Memory; !found || m == nil || m.DisableOOMKiller == nil || !*m.DisableOOMKiller {
		return nil
	}
	if _, skipped := g.Skipped["memory"]; skipped || g.Unit != nil {
		return nil
	}
	if err := cgroups.WriteFile(dir, "memory.oom_control", "0"); err != nil {
		return fmt.Errorf("set limits of cgroup: %w", err)
	}
	return nil
}

// release moves every process of the boot group into the container's group and removes the
// boot group.
func (g *Group) release(ctx context.Context) error {
	for g.HasBootGroup() {
		pids, err := cgroups.GetPids(g.Boot)
		if isGone(err) {
			break
		}
		if err != nil {
			return fmt.Errorf("read cgroup: %w", err)
		}
		if len(pids) == 0 {
			if err := removeGroup(ctx, g.Boot); err != nil {
				return fmt.Errorf("remove cgroup: %w", err)
			}
			break
		}
		for _, pid := range pids {
			// A process that has ended meanwhile needs no group.
			if err := cgroups.WriteCgroupProc(g.Paths["memory"], pid); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("join cgroup: %w", err)
			}
		}
	}
	g.Boot = ""
	return nil
}

// HasBootGroup says whether the boot group exists, that is, whether JoinBootGroup was called, by
// any process, and MakeRoom was not.
func (g *Group) HasBootGroup() bool {
	if g.Boot == "" {
		return false
	}
	_, err := os.Stat(g.Boot)
	return err == nil
}
