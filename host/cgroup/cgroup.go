// Package cgroup puts a container's host processes into the host cgroup that its spec names,
// and sets its limits there. What engines read in that cgroup (stats, OOM events, the pids of
// /proc/PID/cgroup) is then about this container.
//
// It supports cgroup v1, v2 and the hybrid of both, with the library that runc uses. Paths
// follow runc's rules: see [New].
//
// The order of calls: New, PlanBootGroup if there is a memory limit, saving the Group, Join,
// JoinBootGroup and LeaveBootGroup, MakeRoom before the container starts, Change and Apply for
// each change of limits, Remove at the end. The library reads /sys/fs/cgroup at its first use,
// so call [New] and [Group.Join] before pivot_root and before the mount namespace changes.
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

// Group is a container's place in each cgroup hierarchy of the host. It is plain data: when it
// was saved as JSON before Join, another process can Remove the groups.
type Group struct {
	// Paths maps each mounted v1 controller to the group's directory. The key "" is the v2
	// hierarchy; if there is only v2 it is the only key.
	Paths map[string]string `json:"paths"`
	// Keep lists those Paths that had groups below them when New looked. They belong to
	// somebody else, so Remove leaves them.
	Keep []string `json:"keep,omitempty"`
	// Unit is set if systemd manages the group.
	Unit *Unit `json:"unit,omitempty"`
	// Skipped is set by Join: the controllers whose groups the process could not enter, with
	// the reason. The caller logs them as a warning.
	Skipped map[string]string `json:"skipped,omitempty"`
	// Room is what limits have to leave for the virtual machine.
	Room Room `json:"room"`
	// Limits are the limits as they were asked for, without the room. An update changes some of
	// them.
	Limits *specs.LinuxResources `json:"limits,omitempty"`
	// Boot is the directory of the boot group that PlanBootGroup has named; "" if there is none.
	Boot string `json:"boot,omitempty"`
}

// Unit names a transient systemd unit.
type Unit struct {
	Slice  string `json:"slice"` // empty means system.slice
	Prefix string `json:"prefix"`
	Name   string `json:"name"`
}

// New finds the groups of a container and makes none yet. cgroupsPath follows runc's rules. An
// absolute path starts at the root of each hierarchy. A relative path is below the calling
// process's own group; with v2 it is beside that group, because a v2 group that has processes
// cannot give controllers to its children. An empty path means the container's id as a relative
// path. With systemd the path has the form "slice:prefix:name", and empty means
// "system.slice:runc:ID".
//
// New returns an error for a group that has processes, as runc does, because its statistics
// would include theirs and it could not be removed. It also returns an error for a frozen
// group, in which the supervisor would stop for ever.
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
		// Otherwise the library returns an error if the devices controller is missing. runc
		// needs that controller to isolate containers; husk's containers have no devices of the
		// host.
		cfg.SkipDevices = true
		m, err = manager.New(cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("find cgroup: %w", err)
	}
	g.Paths = maps.Clone(m.GetPaths())
	// A directory with the name of a controller counts only if a hierarchy is mounted there.
	// The library checks that for some names only.
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

// config returns the library's description of the group, whose paths are known.
func (g *Group) config() *cgroups.Cgroup {
	cfg := &cgroups.Cgroup{Resources: &cgroups.Resources{}}
	if g.Unit != nil {
		cfg.Systemd = true
		cfg.Parent, cfg.ScopePrefix, cfg.Name = g.Unit.Slice, g.Unit.Prefix, g.Unit.Name
	}
	return cfg
}

// inspect checks groups that exist before the container does.
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

// Join makes the groups and moves a process into them. pid is the process's number in the
// caller's pid namespace, with systemd in systemd's; 0 means the caller. Save the group before:
// if Join fails, Remove removes what it has made.
//
// If the kernel refuses a process of root in a v1 controller's group (EROFS, EPERM or EACCES,
// as with read-only cgroup mounts in an unprivileged engine's container, or by a security
// module), the controller is noted in Skipped. It is an error only if all controllers refuse:
// the container runs without one, only engines read no figures. The caller must refuse limits
// of a skipped controller.
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

// joinV1 joins controller by controller. The library would stop at the first one that refuses.
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
		case errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS): // EPERM, EACCES or EROFS
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

// Add moves another process into groups that Join has made; pid is as for Join. It does not use
// systemd, which does not care which processes are in a unit. Groups that refuse the process
// are skipped; it is an error if all refuse.
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

// controllers returns how many entries of Paths Join must be able to enter. The library tries
// the others and ignores errors.
func (g *Group) controllers() int {
	n := 0
	for c := range g.Paths {
		if c != "" && c != "misc" && !strings.HasPrefix(c, cgroups.CgroupNamePrefix) {
			n++
		}
	}
	return n
}

// Pids returns the processes of the group and of the groups below it, as pids of the caller's
// pid namespace. A process without a number there is 0. If the group does not exist, there are
// none.
func (g *Group) Pids() ([]int, error) {
	// All hierarchies have the same processes, except those that a skipped controller does not
	// have and those that somebody has moved.
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

// dirs returns the directories of all groups of the container.
func (g *Group) dirs() []string {
	dirs := slices.Collect(maps.Values(g.Paths))
	if g.Boot != "" {
		dirs = append(dirs, g.Boot)
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// isGone says whether err means that a group does not exist, or that it was removed while one
// of its files was open.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// Name returns what the group's processes read in /proc/self/cgroup if they have no cgroup
// namespace: the group's path from the root of a hierarchy. It is the same in all hierarchies,
// except on unusual machines. It is empty for the root. The group must exist.
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

// inHierarchy says whether dir is in a cgroup hierarchy. dir need not exist.
func inHierarchy(dir string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	for errors.Is(err, unix.ENOENT) && dir != "/" {
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &st)
	}
	return err == nil && (st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC)
}

// isHierarchyRoot says whether a hierarchy is mounted on dir.
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
