package libcontainer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// AwaitOOM waits until the kernel has killed more than seen processes of the container because
// memory was short, and returns their number. It returns an error when ctx ends or the
// container is destroyed. While it waits, it also ends thrashing: see thrashes.
func (c *Container) AwaitOOM(ctx context.Context, seen uint64) (uint64, error) {
	if c.cgroup == nil {
		return 0, errNoCgroup
	}
	f, err := os.Open(filepath.Join(c.cgroup.dir, "memory.events"))
	if err != nil {
		return 0, fmt.Errorf("watch memory: %w", err)
	}
	defer func() { _ = f.Close() }()
	wake, sleeper, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("watch memory: %w", err)
	}
	defer func() { _ = wake.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = sleeper.Close() })
	defer func() {
		if stop() {
			_ = sleeper.Close()
		}
	}()
	top, err := c.cgroup.openTop()
	if err != nil {
		return 0, fmt.Errorf("watch memory: %w", err)
	}
	defer func() { _ = top.Close() }() // also of nil
	var stalls *os.File
	defer func() { _ = stalls.Close() }() // also of nil
	fds := []unix.PollFd{
		{Fd: int32(f.Fd()), Events: unix.POLLPRI},
		{Fd: int32(wake.Fd()), Events: unix.POLLIN},
		{Fd: -1, Events: unix.POLLPRI}, // poll ignores a negative descriptor
		{Fd: -1, Events: unix.POLLPRI},
	}
	if top != nil {
		fds[3].Fd = int32(top.Fd())
	}
	for {
		events, err := readEvents(f)
		if err != nil {
			return 0, err
		}
		hits := events["max"]
		if top != nil {
			above, err := readEvents(top)
			if err != nil {
				return 0, err
			}
			hits += above["max"]
		}
		if kills := events["oom_kill"]; kills > seen {
			return kills, nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		// Watching for stalls starts when the limit has been hit once, which most containers
		// never do.
		if stalls == nil && hits > 0 {
			if stalls = c.cgroup.watchStalls(); stalls != nil {
				fds[2].Fd = int32(stalls.Fd())
			}
		}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, os.NewSyscallError("poll", err)
		}
		switch stalled := fds[2].Revents; {
		case stalled&unix.POLLERR != 0:
			fds[2].Fd = -1 // its cgroup has gone, and poll would return at once for ever
		case stalled != 0:
			if c.endThrashing() != nil {
				fds[2].Fd = -1 // the kernel will notice by itself, later
			}
		}
	}
}

// openTop opens memory.events of the topmost cgroup above this one, whose limit holds for all
// containers. It returns nil if there is no cgroup above.
func (c *cgroup) openTop() (*os.File, error) {
	below, err := filepath.Rel(c.root, c.dir)
	if err != nil {
		return nil, err
	}
	top, _, nested := strings.Cut(below, "/")
	if !nested {
		return nil, nil
	}
	return os.Open(filepath.Join(c.root, top, "memory.events"))
}

// readEvents reads memory.events. Reading also arms the next poll.
func readEvents(f *os.File) (map[string]uint64, error) {
	buf := make([]byte, 512)
	n, err := f.ReadAt(buf, 0)
	if n == 0 && err != nil {
		return nil, fmt.Errorf("watch memory: %w", err)
	}
	return parseKeys(string(buf[:n]))
}

// endThrashing holds c.mu, so that Update does not change the limit at the same time.
func (c *Container) endThrashing() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.destroyed {
		return nil
	}
	return c.cgroup.endThrashing()
}
