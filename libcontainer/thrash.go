package libcontainer

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// stallTrigger asks the kernel for an event when all tasks of a cgroup have waited for
	// memory for 1 of 2 seconds (see accounting/psi.rst). Values are in microseconds.
	stallTrigger = "full 1000000 2000000"
	// leastCache, in bytes: with less page cache than this, only the running program's own
	// pages can be reclaimed.
	leastCache = 1 << 20
	// excess is how many bytes more than it can reclaim endThrashing asks the kernel for. The
	// kernel has to kill a process to get them, and one is enough.
	excess = 256 << 10
)

// watchStalls returns a file on which poll reports POLLPRI when the container only waits for
// memory. It returns nil if the kernel cannot tell.
func (c *cgroup) watchStalls() *os.File {
	fd, err := unix.Open(filepath.Join(c.dir, "memory.pressure"), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "memory.pressure")
	if _, err := f.WriteString(stallTrigger); err != nil {
		_ = f.Close()
		return nil
	}
	return f
}

// thrashes says whether a cgroup that waits for memory cannot get any: it is at its limit, and
// it needs every page that the kernel reclaims again at once. The kernel does not call that out
// of memory as long as it can reclaim a page. Where pages are read back over 9p it can take a
// minute until it can reclaim none.
func thrashes(limit, used uint64, stat map[string]uint64) bool {
	return used+excess >= limit && cacheOf(stat) < leastCache
}

func cacheOf(stat map[string]uint64) uint64 { return stat["active_file"] + stat["inactive_file"] }

// bounds returns the cgroup and the cgroups above it, as far as they have a memory limit.
func (c *cgroup) bounds() (all []*cgroup, err error) {
	const none = ^uint64(0)
	for dir := c.dir; dir != c.root && dir != "/"; dir = filepath.Dir(dir) {
		at := &cgroup{dir: dir, root: c.root}
		limit, err := at.readUint("memory.max", none)
		if err != nil {
			return nil, err
		}
		if limit != none {
			all = append(all, at)
		}
	}
	return all, nil
}

// endThrashing makes the kernel choose and kill a process, as it does when memory is short, if
// the cgroup or one above it thrashes.
func (c *cgroup) endThrashing() error {
	all, err := c.bounds()
	if err != nil {
		return err
	}
	for _, at := range all {
		killed, err := at.killIfThrashing()
		if killed || err != nil {
			return err
		}
	}
	return nil
}

// killIfThrashing makes the kernel kill a process if the cgroup, which has a limit, thrashes.
func (c *cgroup) killIfThrashing() (killed bool, err error) {
	limit, err := c.readUint("memory.max", 0)
	if err != nil {
		return false, err
	}
	used, err := c.readUint("memory.current", 0)
	if err != nil {
		return false, err
	}
	stat, err := c.readKeys("memory.stat")
	if err != nil || !thrashes(limit, used, stat) {
		return false, err
	}
	// If the limit is below what is in use, the write returns only after the kernel has
	// reclaimed memory and, if that does not suffice, killed.
	few := used - min(used, cacheOf(stat)+excess)
	return true, errors.Join(c.write("memory.max", strconv.FormatUint(few, 10)), c.write("memory.max", strconv.FormatUint(limit, 10)))
}
