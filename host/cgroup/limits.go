package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	cgroupfs "github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/manager"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/specconv"
)

// Change is a planned change of a group's limits. It has no effect before Apply.
type Change struct {
	// Dropped are the fields that this machine cannot enforce.
	Dropped []specconv.Dropped
	// Limits are the group's limits after the change.
	Limits *specs.LinuxResources

	group *Group
	parts []part
	was   snapshot
}

// part is what is written to one hierarchy.
type part struct {
	dir  string
	set  func() error
	undo []string // names of the files that it may change
}

// Change prepares setting the limits in r. Other limits stay as they are. Limits that count
// what the virtual machine uses get room for it (see [Room]), unless created is true, which
// means the time before MakeRoom: then the values are those asked for, if the machine can work
// with them.
//
// Limits of memory, cpu and pids are enforced in the guest too. They are left out without a
// warning if the host has no such controller, as New and Join have found.
func (g *Group) Change(r *specs.LinuxResources, created bool) *Change {
	c := &Change{group: g, Limits: merge(g.Limits, r)}
	if r == nil {
		return c
	}
	room := g.Room
	if created {
		room.created, room.inBootGroup = true, g.HasBootGroup()
	}
	want := convert(r, c.Limits, room)
	if g.Unit != nil || g.IsV2() {
		c.addV2(r, want)
		return c
	}
	if len(r.Unified) > 0 {
		for _, name := range slices.Sorted(maps.Keys(r.Unified)) {
			if !heldByGuest(name) {
				c.drop(fmt.Sprintf("unified[%q]", name), "the host has cgroup v1")
			}
		}
	}
	for _, ctl := range v1Controllers {
		c.addV1(ctl, r, want)
	}
	if len(r.Devices) > 0 {
		c.addDevices(r.Devices)
	}
	return c
}

// IsV2 says whether the group is in the single hierarchy of cgroup v2.
func (g *Group) IsV2() bool {
	_, unified := g.Paths[""]
	return unified && len(g.Paths) == 1
}

func (c *Change) drop(field, why string) {
	c.Dropped = append(c.Dropped, specconv.Dropped{Field: "linux.resources." + field, Why: why})
}

// addV1 adds one controller's part of want.
func (c *Change) addV1(ctl v1Controller, r *specs.LinuxResources, want *cgroups.Resources) {
	fields := ctl.fields(r)
	share := ctl.share(want)
	if len(fields) == 0 && share == nil {
		return
	}
	dir, found := c.group.Paths[ctl.name]
	_, skipped := c.group.Skipped[ctl.name]
	if !found || skipped {
		for _, field := range fields {
			c.drop(field, "this machine has no "+ctl.name+" controller for it")
		}
		return
	}
	if share == nil { // only kernelTCP is set
		share = &cgroups.Resources{}
	}
	share.SkipDevices = true
	c.parts = append(c.parts, part{dir: dir, undo: append(hugeFiles(share.HugetlbLimit), ctl.files...), set: func() error {
		m, err := cgroupfs.NewManager(c.group.config(), map[string]string{ctl.name: dir})
		if err == nil {
			err = m.Set(share)
		}
		if err == nil && ctl.name == "memory" {
			err = setTCP(dir, r)
		}
		return err
	}})
}

// addV2 adds all of want for the library, or through the library for systemd. Limits without
// device rules, as in an update, leave the present filter.
func (c *Change) addV2(r *specs.LinuxResources, want *cgroups.Resources) {
	for _, field := range onlyV1(r) {
		c.drop(field, "cgroup v2 does not have it")
	}
	want.SkipDevices, want.Devices = len(r.Devices) == 0, nil
	if !want.SkipDevices {
		want.Devices = filterRules()
	}
	// The guest ends the container's processes together. On the host this would end the whole
	// machine together with any other process of husk's.
	delete(want.Unified, "memory.oom.group")
	p := part{undo: v2Files, set: func() error {
		m, err := manager.NewWithPaths(c.group.config(), maps.Clone(c.group.Paths))
		if err != nil {
			return err
		}
		return m.Set(want)
	}}
	if dir, ok := c.group.Paths[""]; ok {
		p.dir = dir
		p.undo = append(slices.Clone(v2Files), slices.Collect(maps.Keys(want.Unified))...)
		set := p.set
		p.set = func() error {
			// The guest has it in any case.
			if _, err := os.Stat(filepath.Join(dir, "pids.max")); errors.Is(err, fs.ErrNotExist) {
				want.PidsLimit = nil
			}
			return set()
		}
	}
	c.parts = append(c.parts, p)
}

// Apply sets all limits or, if it returns an error, none. Afterwards the group's Limits are
// those of the change; the caller saves them.
func (c *Change) Apply() error {
	c.was = snapshot{}
	for _, p := range c.parts {
		if p.dir != "" {
			c.was.take(p.dir, p.undo)
		}
	}
	for _, p := range c.parts {
		if err := p.set(); err != nil {
			err = fmt.Errorf("set limits of cgroup: %w", describe(err))
			return errors.Join(err, c.was.restore())
		}
	}
	c.group.Limits = c.Limits
	return nil
}

// Undo restores the limits from before Apply.
func (c *Change) Undo() error {
	if c.group.Unit != nil {
		return nil // systemd keeps these values until the next update
	}
	return c.was.restore()
}

// describe replaces "file does not exist" by what that means.
func describe(err error) error {
	var perr *fs.PathError
	if errors.As(err, &perr) && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("this machine's kernel has no %s: %w", perr.Path[strings.LastIndex(perr.Path, "/")+1:], err)
	}
	return err
}

// merge returns base with the fields that r sets.
func merge(base, r *specs.LinuxResources) *specs.LinuxResources {
	if base == nil {
		base = &specs.LinuxResources{}
	}
	out := *base
	if r == nil {
		return &out
	}
	if r.Memory != nil {
		out.Memory = mergeMemory(base.Memory, r.Memory)
	}
	if r.CPU != nil {
		out.CPU = mergeCPU(base.CPU, r.CPU)
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		out.Pids = r.Pids
	}
	if len(r.Unified) > 0 {
		out.Unified = maps.Clone(base.Unified)
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		maps.Copy(out.Unified, r.Unified)
	}
	// The other values depend on no others, so they are not needed here.
	return &out
}

func mergeMemory(base, r *specs.LinuxMemory) *specs.LinuxMemory {
	out := specs.LinuxMemory{}
	if base != nil {
		out = *base
	}
	override(&out.Limit, r.Limit)
	override(&out.Swap, r.Swap)
	override(&out.Reservation, r.Reservation)
	if r.Limit != nil && *r.Limit == unlimited && value(r.Swap) == 0 {
		out.Swap = r.Limit // as the library does
	}
	if r.DisableOOMKiller != nil {
		out.DisableOOMKiller = r.DisableOOMKiller
	}
	return &out
}

func mergeCPU(base, r *specs.LinuxCPU) *specs.LinuxCPU {
	out := specs.LinuxCPU{}
	if base != nil {
		out = *base
	}
	override(&out.Quota, r.Quota)
	override(&out.Period, r.Period)
	return &out
}

// override sets to unless v is nil or 0, which also means "not set".
func override[T int64 | uint64](to **T, v *T) {
	if value(v) != 0 {
		*to = v
	}
}

func value[T int64 | uint64](p *T) T {
	if p == nil {
		return 0
	}
	return *p
}
