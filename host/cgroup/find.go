package cgroup

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"
)

// Of finds the groups of the container with this id by one of its processes, for the case that
// what was saved is lost. The result is good enough for Remove. Only groups with the
// container's name count as its own.
func Of(hostPID int, id string) (*Group, error) {
	in, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", hostPID))
	if err != nil {
		return nil, fmt.Errorf("find cgroup: %w", err)
	}
	g := &Group{Paths: map[string]string{}}
	for controller, path := range in {
		mount, root, err := mountOf(controller)
		below, inside := strings.CutPrefix(path, strings.TrimSuffix(root, "/")+"/")
		if err != nil || !inside || strings.Contains(path, "..") {
			continue // the group is outside of what is mounted here
		}
		// The process may be in the boot group.
		if name := ofContainer(strings.TrimSuffix(below, bootSuffix), id); name != "" {
			g.Paths[controller] = filepath.Join(mount, name)
		}
	}
	g.PlanBootGroup() // Remove ignores it if it does not exist
	return g, nil
}

func mountOf(controller string) (mount, root string, err error) {
	if controller != "" {
		return cgroups.FindCgroupMountpointAndRoot("", controller)
	}
	if cgroups.IsCgroup2UnifiedMode() {
		return unifiedMount, "/", nil
	}
	return hybridMount, "/", nil
}

// Mount points of the v2 hierarchy, alone and beside v1.
const (
	unifiedMount = "/sys/fs/cgroup"
	hybridMount  = "/sys/fs/cgroup/unified"
)

// ofContainer returns the part of a path up to and with the container's group, "" if it has
// none. systemd's groups are named "prefix-id.scope".
func ofContainer(path, id string) string {
	for ; path != "." && path != "/"; path = filepath.Dir(path) {
		if base := filepath.Base(path); base == id || strings.HasSuffix(base, "-"+id+".scope") {
			return path
		}
	}
	return ""
}
