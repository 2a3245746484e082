package syscalls

import (
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// CloseOnExec marks all descriptors from number first on close-on-exec. Those that Go opens
// are marked already; those that a process has inherited, such as an engine's listening
// socket, are not, and would stay open in every program that it executes. It needs Linux
// 5.11.
func CloseOnExec(first int) error {
	return os.NewSyscallError("close_range", unix.CloseRange(uint(first), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC))
}
