// Package flock waits for file locks with a deadline, which flock(2) does not have.
package flock

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// Wait takes an exclusive lock on f. It waits until ctx ends. Closing f releases the lock.
//
// If ctx ends first, the pending flock(2) cannot be cancelled: the caller must not use f again,
// and f is closed when the call returns. No duplicate of f may be locked either, because it
// would be the same lock. After another error f is closed.
func Wait(ctx context.Context, f *os.File) error {
	got := make(chan error, 1)
	fd := int(f.Fd())
	go func() { got <- lock(fd) }()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
		}
		return err
	case <-ctx.Done():
		go func() {
			<-got //nolint:errcheck // nobody waits for it any more
			f.Close()
		}()
		return context.Cause(ctx)
	}
}

func lock(fd int) error {
	return syscalls.IgnoringEINTR(func() error { return unix.Flock(fd, unix.LOCK_EX) })
}
