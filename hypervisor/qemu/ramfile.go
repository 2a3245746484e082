package qemu

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ramFile makes QEMU open a template's RAM read-only.
//
// QEMU maps the file privately but opens it for writing; only since version 9 it can be told
// not to. A guest that takes its QEMU over could then write into the memory of all other guests
// of the template. So this process answers QEMU's open of the file with a descriptor that is
// open for reading only.
type ramFile struct {
	path string
	file *os.File
	// given is set when QEMU has the descriptor.
	given atomic.Bool
}

func openRAMFile(path string) (*ramFile, error) {
	f, err := openSealed(path)
	if err != nil {
		return nil, fmt.Errorf("open template: %w", err)
	}
	return &ramFile{path: path, file: f}, nil
}

// openSealed opens a file for reading so that nobody with the descriptor can open it again for
// writing through /proc/self/fd. The file is opened on a detached read-only mount that exists
// only for this descriptor.
func openSealed(path string) (*os.File, error) {
	mount, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(mount)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return nil, os.NewSyscallError("mount_setattr", err)
	}
	return os.Open("/proc/self/fd/" + strconv.Itoa(mount))
}

// atCWD is AT_FDCWD in the 32 bits that a filter tests.
const atCWD = allBits + 1 + unix.AT_FDCWD

// watched returns the calls to answer: those that name a file by a path. Calls for files of the
// guest name it by a directory's descriptor.
func (r *ramFile) watched() watch {
	return watch{"openat": {{{0, allBits, atCWD}, {2, unix.O_ACCMODE, unix.O_RDWR}}}}
}

// handle answers a call if it is one for the RAM file. It returns false if it has not answered.
func (r *ramFile) handle(calls *listener, t target, n notification) bool {
	if n.nr != unix.SYS_OPENAT || int32(n.args[0]) != unix.AT_FDCWD || n.args[2]&unix.O_ACCMODE != unix.O_RDWR {
		return false
	}
	path, err := t.readString(n.args[1], unix.PathMax)
	if err != nil || path != r.path {
		return false
	}
	if err := calls.give(n, r.file, uint32(n.args[2]&unix.O_CLOEXEC)); err != nil {
		calls.answer(n, 0, unix.EACCES)
		return true
	}
	r.given.Store(true)
	return true
}

func (r *ramFile) close() { r.file.Close() }

// check returns an error if QEMU has opened the file by itself.
func (r *ramFile) check() error {
	if r.given.Load() {
		return nil
	}
	return errors.New("qemu did not take the template's memory read-only")
}
