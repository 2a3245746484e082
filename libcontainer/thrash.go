package libcontainer

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// stallTrigger asks to be told when all that runs in a cgroup has waited for memory
	// for one of two seconds (kernel: accounting/psi.rst), in microseconds.
	stallTrigger = "full 1000000 2000000"
	// leastCache is what is left of the page cache, in bytes, when all there is to
	// reclaim is the program that runs.
	leastCache = 1 << 20
	// squeezeBytes is how much more is asked for than can be reclaimed: it takes a
	// kill to get it, and one is enough.
	squeezeBytes = 256 << 10
)

// watchStalls returns a file that a poll for POLLPRI wakes from when the container
// does nothing but wait for memory; nil where the kernel can't tell.
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

// thrashes says whether a cgroup that waits for memory can't get any: it is at its
// limit, and what the kernel takes from it, it needs back at once. The kernel
// doesn't call that out of memory as long as there is a page to take, and where a
// page comes back over 9p it can take a minute until there is none.
func thrashes(limit, used uint64, stat map[string]uint64) bool {
	return used+squeezeBytes >= limit && cacheOf(stat) < leastCache
}

func cacheOf(stat map[string]uint64) uint64 { return stat["active_file"] + stat["inactive_file"] }

// bounds are the cgroup and those above it, as far as they limit memory.
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

// endThrashing has the kernel choose and kill a process, as it does when it finds
// that there is no memory, if the cgroup or one above it thrashes.
func (c *cgroup) endThrashing() error {
	all, err := c.bounds()
	if err != nil {
		return err
	}
	for _, at := range all {
		killed, err := at.squeeze()
		if killed || err != nil {
			return err
		}
	}
	return nil
}

// squeeze has a process killed if the cgroup, which has a limit, thrashes.
func (c *cgroup) squeeze() (killed bool, err error) {
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
	// Below what is in use the kernel reclaims, and then kills, before the write ends.
	few := used - min(used, cacheOf(stat)+squeezeBytes)
	return true, errors.Join(c.write("memory.max", strconv.FormatUint(few, 10)), c.write("memory.max", strconv.FormatUint(limit, 10)))
}
