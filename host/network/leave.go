package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Leave removes what the Join of a dead supervisor has left on the interfaces of the network
// namespace at hostPath: redirections to taps that no longer exist or to taps with the given
// interface indexes (Tap.Index), their qdiscs, and the hops of such taps. It leaves those of
// other containers in the same namespace, and a qdisc that existed before Join. Any process may
// call it, any number of times. It is no error if the namespace no longer exists.
func Leave(hostPath string, tapIndexes ...int) error {
	// O_NONBLOCK: the path comes from the bundle and may be a FIFO by now.
	f, err := os.OpenFile(hostPath, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat network namespace %s: %w", hostPath, err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil // the empty file on which a namespace was mounted
	}
	if err := inNamespace(int(f.Fd()), func() error { return leave(tapIndexes) }); err != nil {
		return fmt.Errorf("clean network namespace %s: %w", hostPath, err)
	}
	return nil
}

func leave(tapIndexes []int) error {
	targets := make(map[int]bool, len(tapIndexes))
	for _, i := range tapIndexes {
		targets[i] = true
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	errs := []error{removeStaleHops(targets)}
	for _, link := range links {
		if tapOfHop(link) != "" {
			continue // stale, or another container's
		}
		err := removeRedirects(link, targets)
		if isGone(err) {
			continue // the interface has gone since
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// inNamespace runs f on a thread in the network namespace fd. The goroutine stays locked to the
// thread, so Go ends the thread with it, and no other code runs in that namespace.
func inNamespace(fd int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Go never ends the main thread, and /proc/self would then show the wrong
			// namespace. While this goroutine is locked to the main thread, the next one runs
			// on another.
			defer runtime.UnlockOSThread()
			done <- inNamespace(fd, f)
			return
		}
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
