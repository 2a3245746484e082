package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// removeTimeout is the deadline of Remove if its context has none. A killed process normally
// exits much earlier.
const removeTimeout = 10 * time.Second

// Remove removes the groups and the empty groups below them, but not their parents, which other
// containers use too. It kills nothing: it waits until the processes in the groups have ended.
// The wait ends at the context's deadline, or after ten seconds if it has none, with an error
// that names the processes. A group that does not exist is no error, so Remove may be called
// again, from any process.
func (g *Group) Remove(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, removeTimeout)
		defer cancel()
	}
	var errs []error
	for _, dir := range g.dirs() {
		if slices.Contains(g.Keep, dir) {
			continue
		}
		if err := removeGroup(ctx, dir); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	if g.Unit == nil || len(errs) > 0 || len(g.Keep) > 0 {
		// Stopping the unit would kill processes that are left in it or below it.
		return errors.Join(errs...)
	}
	m, err := manager.NewWithPaths(g.config(), maps.Clone(g.Paths))
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	if err := m.Destroy(); err != nil {
		return fmt.Errorf("remove systemd unit: %w", err)
	}
	return nil
}

// removeGroup removes one directory of one hierarchy.
func removeGroup(ctx context.Context, dir string) error {
	ours, err := isRemovable(dir)
	if err != nil || !ours {
		return err
	}
	delay := time.Millisecond
	for {
		err := removeTree(dir)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		pids, perr := cgroups.GetAllPids(dir)
		if perr != nil && !isGone(perr) {
			return perr
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: processes %v are still in it: %w", err, pids, ctx.Err())
		}
		waited, werr := waitExit(ctx, pids)
		if werr != nil {
			return werr
		}
		if !waited {
			// There is no process to wait for: the kernel takes a task out of its group a
			// moment after the task has ended, and v1 sends no event for it.
			select {
			case <-ctx.Done():
			case <-time.After(delay):
				delay = min(2*delay, 50*time.Millisecond)
			}
		}
	}
}

// isRemovable says whether dir is a group to remove. It is not if it does not exist, is a plain
// directory where a hierarchy was once mounted, or is the root of a hierarchy, below which are
// all groups of the machine.
func isRemovable(dir string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if isGone(err) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Type != unix.CGROUP_SUPER_MAGIC && st.Type != unix.CGROUP2_SUPER_MAGIC {
		return false, nil
	}
	root, err := isHierarchyRoot(dir)
	if isGone(err) {
		return false, nil
	}
	return !root, err
}

// removeTree removes a group and the groups below it, the lowest first. It uses only rmdir,
// which fails for a group that has processes.
func removeTree(dir string) error {
	err := rmdir(dir)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	entries, rerr := os.ReadDir(dir)
	if isGone(rerr) {
		return nil
	}
	if rerr != nil {
		return rerr
	}
	below := slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !e.IsDir() })
	if len(below) == 0 {
		return err
	}
	for _, e := range below {
		if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return rmdir(dir)
}

func rmdir(dir string) error {
	err := syscalls.IgnoringEINTR(func() error { return unix.Rmdir(dir) })
	if err != nil && !isGone(err) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// waitExit waits until one of the processes or the context has ended. It returns false at once
// if none of the processes can be waited for.
func waitExit(ctx context.Context, pids []int) (bool, error) {
	for _, pid := range pids {
		if pid == 0 {
			continue // in another pid namespace
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended since
		}
		err = waitPidfd(ctx, fd)
		unix.Close(fd)
		if err != nil {
			return false, fmt.Errorf("wait for process %d: %w", pid, err)
		}
		return true, nil
	}
	return false, nil
}

func waitPidfd(ctx context.Context, fd int) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer func() {
		if stop() {
			w.Close()
		}
	}()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(r.Fd()), Events: unix.POLLIN}}
	return syscalls.IgnoringEINTR(func() error {
		_, err := unix.Poll(fds, -1)
		return err
	})
}
