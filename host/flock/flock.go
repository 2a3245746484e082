// Package flock takes file locks that wait with a deadline, which flock(2) does
// not have.
package flock

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// Wait takes an exclusive lock on f and waits for it until ctx ends. The lock
// goes with f's close. When ctx ends first, the wait itself cannot be called
// back: f must not be used again, and is closed once the wait is over. Nor may a
// copy of f's descriptor be locked, which would be the same lock. After another
// error f is closed.
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
			<-got //nolint:errcheck // nobody is left to be told
			f.Close()
		}()
		return context.Cause(ctx)
	}
}

func lock(fd int) error {
	return syscalls.IgnoringEINTR(func() error { return unix.Flock(fd, unix.LOCK_EX) })
}
