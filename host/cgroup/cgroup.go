// Package cgroup puts a container's host processes into the host cgroup its
// spec names, so that what engines read there (stats, OOM events, the pids of
// /proc/PID/cgroup) is of this container, and sets its limits there.
//
// cgroup v1, v2 and the hybrid of both are served, by runc's own library, and
// paths are runc's: see [New].
//
// The library remembers /sys/fs/cgroup from its first use on, so [New] and
// [Group.Join] belong before pivot_root and before a mount namespace is left.
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
	"golang.org/x/sys/unix"
)

// Group is a container's place in each cgroup hierarchy of the host. It is
// plain data: saved as JSON before Join, it is enough to Remove the groups from
// another process.
type Group struct {
	// Paths has the host directory for each v1 controller that is mounted, ""
	// being the v2 hierarchy; with v2 alone that is the only entry.
	Paths map[string]string `json:"paths"`
	// Keep are those of Paths that had groups below them already when New looked:
	// they are somebody's, and Remove leaves them.
	Keep []string `json:"keep,omitempty"`
	// Unit is set where systemd manages the group.
	Unit *Unit `json:"unit,omitempty"`
	// Skipped has, after Join, the controllers the machine did not let the
	// process into, and why. To be logged as a warning.
	Skipped map[string]string `json:"skipped,omitempty"`
	// Room is what limits leave to the virtual machine.
	Room Room `json:"room"`
	// Limits are those that were set, as they were asked for: what an update
	// changes a part of.
	Limits *specs.LinuxResources `json:"limits,omitempty"`
	// Boot is the group that Hold has made, "" without one.
	Boot string `json:"boot,omitempty"`
}

// Unit names a transient systemd unit.
type Unit struct {
	Slice  string `json:"slice"` // empty: system.slice
	Prefix string `json:"prefix"`
	Name   string `json:"name"`
}

// New finds the groups of a container, and makes none yet. cgroupsPath follows
// runc's rules: absolute is from the root of each hierarchy, relative is below
// the calling process's own group (v2: beside it, as a v2 group with processes
// can have no controllers for its children), empty is the container's id as a
// relative path. With systemd it is "slice:prefix:name", and empty is
// "system.slice:runc:ID".
//
// A group that holds processes already is refused, as runc refuses it: its
// stats would be somebody else's too and it could not be removed. So is a
// frozen one, in which the supervisor would stop for ever.
func New(id, cgroupsPath string, systemd bool) (*Group, error) {
	g := &Group{}
	cfg := &cgroups.Cgroup{Resources: &cgroups.Resources{}, Systemd: systemd}
	switch {
	case systemd:
		unit, err := parseUnit(id, cgroupsPath)
		if err != nil {
			return nil, err
		}
		g.Unit = unit
		cfg = g.config()
	case cgroupsPath == "":
		cfg.Name = id
	default:
		cfg.Path = cgroupsPath
	}
	m, err := manager.New(cfg)
	if cgroups.IsNotFound(err) && !systemd {
		// Only a missing devices controller is an error. runc relies on it for the
		// container's safety; husk's containers have no devices of the host.
		cfg.SkipDevices = true
		m, err = manager.New(cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("find cgroup: %w", err)
	}
	g.Paths = maps.Clone(m.GetPaths())
	// A directory named like a controller is none unless a hierarchy is mounted
	// on it; the library makes sure of that for some names only.
	maps.DeleteFunc(g.Paths, func(_, dir string) bool { return !inHierarchy(dir) })
	if len(g.Paths) == 0 {
		return nil, errors.New("find cgroup: no cgroup hierarchy is mounted")
	}
	if st, err := m.GetFreezerState(); err == nil && st == cgroups.Frozen {
		return nil, errors.New("container's cgroup unexpectedly frozen")
	}
	return g, g.inspect()
}

func parseUnit(id, cgroupsPath string) (*Unit, error) {
	if cgroupsPath == "" {
		return &Unit{Prefix: "runc", Name: id}, nil
	}
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 {
		return nil, fmt.Errorf("expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got %q instead", cgroupsPath)
	}
	return &Unit{Slice: parts[0], Prefix: parts[1], Name: parts[2]}, nil
}

// config is what the library needs to know where the paths are known.
func (g *Group) config() *cgroups.Cgroup {
	cfg := &cgroups.Cgroup{Resources: &cgroups.Resources{}}
	if g.Unit != nil {
		cfg.Systemd = true
		cfg.Parent, cfg.ScopePrefix, cfg.Name = g.Unit.Slice, g.Unit.Prefix, g.Unit.Name
	}
	return cfg
}

// inspect looks at groups that exist before the container does.
func (g *Group) inspect() error {
	for _, dir := range g.Paths {
		entries, err := os.ReadDir(dir)
		if isGone(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read cgroup: %w", err)
		}
		pids, err := cgroups.GetAllPids(dir)
		if err != nil && !isGone(err) {
			return fmt.Errorf("read cgroup: %w", err)
		}
		if len(pids) > 0 {
			return fmt.Errorf("container's cgroup is not empty: %d process(es) found", len(pids))
		}
		if slices.ContainsFunc(entries, os.DirEntry.IsDir) {
			g.Keep = append(g.Keep, dir)
		}
	}
	slices.Sort(g.Keep)
	return nil
}

// Join makes the groups and puts the process into them; pid is the process's
// number in the caller's own pid namespace (with systemd: in systemd's), 0 the
// caller itself. The group should have been saved by then: after an error
// Remove takes away what had been made.
//
// A v1 controller into which the machine does not let root put a process
// (EROFS, EPERM, EACCES: read-only cgroup mounts as in an unprivileged engine's
// container, a security module) is noted in Skipped, and an error only if there
// is no other: the container runs the same without it, an engine just reads no
// figures. Whoever sets limits must refuse those of a skipped controller.
func (g *Group) Join(pid int) error {
	if pid < 0 || (pid == 0 && g.Unit != nil) {
		return fmt.Errorf("join cgroup: %d is no process", pid)
	}
	_, unified := g.Paths[""]
	if g.Unit != nil || (unified && len(g.Paths) == 1) {
		m, err := manager.NewWithPaths(g.config(), maps.Clone(g.Paths))
		if err != nil {
			return fmt.Errorf("open cgroup: %w", err)
		}
		if err := m.Apply(pid); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
		return nil
	}
	return g.joinV1(pid)
}

// joinV1 goes controller by controller, where the library would stop at the
// first that the machine forbids.
func (g *Group) joinV1(pid int) error {
	g.Skipped = nil
	var forbidden error
	for _, controller := range slices.Sorted(maps.Keys(g.Paths)) {
		m, err := cgroupfs.NewManager(g.config(), map[string]string{controller: g.Paths[controller]})
		if err != nil {
			return fmt.Errorf("open cgroup: %w", err)
		}
		err = m.Apply(pid)
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS): // EPERM, EACCES; EROFS
			if g.Skipped == nil {
				g.Skipped = make(map[string]string)
			}
			g.Skipped[controller] = err.Error()
			forbidden = err
		default:
			return fmt.Errorf("join cgroup %s: %w", g.Paths[controller], err)
		}
	}
	if forbidden != nil && len(g.Skipped) == g.controllers() {
		return fmt.Errorf("join cgroup: the machine allows no controller: %w", forbidden)
	}
	return nil
}

// Add puts another process into a group that Join has made; pid as for Join. To
// systemd a unit is joined but once: it does not look at the processes in it.
// What Join could not enter is passed over; that nothing can be entered is an
// error.
func (g *Group) Add(pid int) error {
	var last error
	added := false
	for _, controller := range slices.Sorted(maps.Keys(g.Paths)) {
		if _, skipped := g.Skipped[controller]; skipped {
			continue
		}
		err := cgroups.WriteCgroupProc(g.Paths[controller], pid)
		switch {
		case err == nil:
			added = true
		case isGone(err), errors.Is(err, fs.ErrPermission):
			last = err
		default:
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	if !added {
		return fmt.Errorf("join cgroup: %w", last)
	}
	return nil
}

// controllers counts the entries of Paths that Join reports errors of; the
// library enters the rest where it can and says nothing where it cannot.
func (g *Group) controllers() int {
	n := 0
	for c := range g.Paths {
		if c != "" && c != "misc" && !strings.HasPrefix(c, cgroups.CgroupNamePrefix) {
			n++
		}
	}
	return n
}

// Pids returns the processes in the group and below it, numbered in the
// caller's pid namespace, 0 for one that has no number there. A group that is
// gone has none.
func (g *Group) Pids() ([]int, error) {
	// All hierarchies have the same processes, save those that a skipped
	// controller does not have and those that someone has moved.
	seen := make(map[int]bool)
	for _, dir := range g.dirs() {
		if slices.Contains(g.Keep, dir) {
			continue
		}
		pids, err := cgroups.GetAllPids(dir)
		if err != nil && !isGone(err) {
			return nil, fmt.Errorf("read cgroup %s: %w", dir, err)
		}
		for _, pid := range pids {
			seen[pid] = true
		}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// dirs are all groups of the container's.
func (g *Group) dirs() []string {
	dirs := slices.Collect(maps.Values(g.Paths))
	if g.Boot != "" {
		dirs = append(dirs, g.Boot)
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// isGone recognises what the kernel says of a group that does not exist, or
// that was removed while a file of it was open.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// Name is what the group's processes find in /proc/self/cgroup if they have no
// cgroup namespace of their own: its path from the root of a hierarchy, the same in
// all but for odd machines. Empty is the root. The group has to be there.
func (g *Group) Name() (string, error) {
	for _, controller := range slices.Sorted(maps.Keys(g.Paths)) {
		if _, skipped := g.Skipped[controller]; skipped {
			continue
		}
		dir := g.Paths[controller]
		var name string
		for ; dir != "/"; dir = filepath.Dir(dir) {
			root, err := isHierarchyRoot(dir)
			if err != nil {
				return "", fmt.Errorf("name cgroup: %w", err)
			}
			if root {
				return name, nil
			}
			name = "/" + filepath.Base(dir) + name
		}
	}
	return "", errors.New("name cgroup: it is in no hierarchy")
}

// inHierarchy is true for a directory of a cgroup hierarchy, one that exists or
// one that can be made.
func inHierarchy(dir string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	for errors.Is(err, unix.ENOENT) && dir != "/" {
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &st)
	}
	return err == nil && (st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC)
}

// isHierarchyRoot is true for the directory a hierarchy is mounted on.
func isHierarchyRoot(dir string) (bool, error) {
	var st, parent unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return false, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if err := unix.Stat(filepath.Dir(dir), &parent); err != nil {
		return false, &os.PathError{Op: "stat", Path: filepath.Dir(dir), Err: err}
	}
	return st.Dev != parent.Dev, nil
}
