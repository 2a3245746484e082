package cgroup

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"
)

// Of finds the groups that a process of the container with this id is in, for want of
// what was saved of them: enough for Remove. Only groups that are called as the
// container are taken for its own.
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
			continue // nothing of it is to be seen here
		}
		// From one that Hold has put it into, if it has.
		if name := ofContainer(strings.TrimSuffix(below, bootSuffix), id); name != "" {
			g.Paths[controller] = filepath.Join(mount, name)
		}
	}
	g.Apart() // what is not there need not be removed
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

// Where the v2 hierarchy is mounted, alone and beside v1.
const (
	unifiedMount = "/sys/fs/cgroup"
	hybridMount  = "/sys/fs/cgroup/unified"
)

// ofContainer is the part of a path that ends with the container's group; "" if it has
// none. systemd's are called "prefix-id.scope".
func ofContainer(path, id string) string {
	for ; path != "." && path != "/"; path = filepath.Dir(path) {
		if base := filepath.Base(path); base == id || strings.HasSuffix(base, "-"+id+".scope") {
			return path
		}
	}
	return ""
}
