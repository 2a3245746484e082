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

// bootSuffix names a group beside the container's own.
const bootSuffix = ".husk-boot"

// Apart has the memory of the machine be counted beside the group until Release, in
// a group of the same parent, so that a limit can be set to just what was asked for,
// which engines and tests read of a created container, although the machine is
// there already and takes more. It makes nothing yet: to be called before the
// group is saved, where there is a limit of memory.
//
// Only cgroup v1 can count memory apart from the rest; elsewhere Apart does
// nothing, and limits have room for the machine from the beginning.
func (g *Group) Apart() {
	dir, found := g.Paths["memory"]
	if found && g.Unit == nil {
		g.Boot = dir + bootSuffix
	}
}

// Hold puts a process, and with it what it starts, where Apart wants its memory
// counted. To be called after Join.
func (g *Group) Hold(pid int) error {
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

// Show takes one process back into the group: the one by whose pid engines look
// for it. The machine it has started stays where it is.
func (g *Group) Show(pid int) error {
	if g.Boot == "" {
		return nil
	}
	if err := cgroups.WriteCgroupProc(g.Paths["memory"], pid); err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	return nil
}

// MakeRoom is for the moment before a process of the container runs: from then on
// limits have room for the machine, and all of it is counted in the group. What
// memory it had until then stays with the parent's count. A second call changes
// nothing.
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
		r = nil // it is there already
	}
	if err := g.Change(r, created).Apply(); err != nil {
		return err
	}
	if err := g.allowKiller(); err != nil {
		return err
	}
	return g.release(ctx)
}

// allowKiller takes back what disableOOMKiller has set: without the killer a machine
// at its limit would stop for ever, and who ends it with it.
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

// release takes everything that Hold kept apart into the group, for good.
func (g *Group) release(ctx context.Context) error {
	for g.Held() {
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
			// One that has ended meanwhile needs no place.
			if err := cgroups.WriteCgroupProc(g.Paths["memory"], pid); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("join cgroup: %w", err)
			}
		}
	}
	g.Boot = ""
	return nil
}

// Held is true from Hold to MakeRoom, whoever has called it.
func (g *Group) Held() bool {
	if g.Boot == "" {
		return false
	}
	_, err := os.Stat(g.Boot)
	return err == nil
}
