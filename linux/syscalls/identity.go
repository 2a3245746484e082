package syscalls

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Identity tells one file from another, whatever the paths that lead to it: two namespaces
// are the same if the files below /proc/PID/ns, or bind mounts of these, are.
type Identity struct{ dev, inode uint64 }

// IdentityOf returns the identity of what a path leads to.
func IdentityOf(path string) (Identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return Identity{st.Dev, st.Ino}, nil
}

// NamespaceOf is IdentityOf for a path that must lead to a namespace. A regular file that is
// none is not found out.
func NamespaceOf(path string) (Identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return Identity{}, errors.New("not a namespace")
	}
	return Identity{st.Dev, st.Ino}, nil
}
