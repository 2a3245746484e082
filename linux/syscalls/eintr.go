package syscalls

import (
	"errors"

	"golang.org/x/sys/unix"
)

// IgnoringEINTR repeats call until it returns anything but EINTR, and returns that. A
// signal, such as those that Go's runtime sends to its own threads, can interrupt calls to
// network filesystems and calls that wait.
func IgnoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
