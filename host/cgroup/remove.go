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

// removeTimeout is Remove's deadline where the context has none: ample for a
// killed process to go, and an end where one never will.
const removeTimeout = 10 * time.Second

// Remove removes the groups and any empty groups below them, but not their
// parents, which other containers share. It kills nothing: it waits until the
// processes that are still in them have ended, to the context's deadline or
// else for ten seconds, and then fails, naming them. What is gone already is no
// error, so it can be called again, from any process.
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
		// Stopping the unit would kill what is left in it or below it.
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
			// Nobody to wait for: the kernel takes a task out of its group a moment
			// after it has ended, and v1 announces neither that nor anything else.
			select {
			case <-ctx.Done():
			case <-time.After(delay):
				delay = min(2*delay, 50*time.Millisecond)
			}
		}
	}
}

// isRemovable is false for what is gone, what is no cgroup (a plain directory
// where a hierarchy was mounted once), and the root of a hierarchy, below which
// removeTree would find all the machine's groups.
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

// removeTree removes a group and those below it, the lowest first. Only rmdir is
// used, which for a group means that it has no processes; its files are the
// kernel's.
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

// waitExit returns when one of the processes has ended or the context has,
// and false at once if none of them can be waited for.
func waitExit(ctx context.Context, pids []int) (bool, error) {
	for _, pid := range pids {
		if pid == 0 {
			continue // of another pid namespace
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // ended since
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
