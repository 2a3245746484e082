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

// Leave removes what a dead supervisor's Join has left on the interfaces of the
// network namespace at hostPath: redirections to taps that no longer exist, or
// to the taps with the given interface indexes (Tap.Index), and their qdiscs.
// Those of other containers that live in the same namespace stay, and so does a
// qdisc that husk found there. It may be called from any process, any number of
// times; a namespace that is gone is no error.
func Leave(hostPath string, tapIndexes ...int) error {
	// O_NONBLOCK: the path comes from the bundle and may have become a FIFO.
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
		return nil // the empty file that a namespace was mounted on
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
	var errs []error
	for _, link := range links {
		err := removeRedirects(link, targets)
		if isGone(err) {
			continue // the interface itself went meanwhile
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// inNamespace runs f on a thread of its own in the network namespace fd. The
// goroutine stays locked to the thread, so the runtime ends it with the
// goroutine and no other code ever runs in the wrong namespace.
func inNamespace(fd int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The runtime never ends the main thread, and /proc/self would show
			// the namespace it was left in. While this goroutine holds it, the next
			// one is on another.
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
