package syscalls

import (
	"os"

	"golang.org/x/sys/unix"
)

// JoinNamespaces moves the calling thread into the namespaces that flags names (CLONE_NEW*).
// fd is a file of one namespace, or a pidfd of a process in them. The caller has locked its
// goroutine to the thread and lets the thread end with it, because no other code expects to
// run there.
//
// With CLONE_NEWNS the thread no longer shares its root and working directory with the other
// threads; both become the root of the mount namespace.
func JoinNamespaces(fd, flags int) error {
	if flags&unix.CLONE_NEWNS != 0 {
		// The kernel moves no thread to another mount namespace that shares its root and
		// working directory, as the threads of a Go program do.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare CLONE_FS", err)
		}
	}
	return os.NewSyscallError("setns", unix.Setns(fd, flags))
}
