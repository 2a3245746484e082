package qemu

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ramFile has QEMU hold a template's RAM read-only.
//
// QEMU maps the file privately, but opens it for writing; only from version 9 on can
// it be told otherwise. Who takes QEMU over could write into the memory of all other
// guests of that template. So QEMU's open of the file is answered with a descriptor
// that this process has opened, for reading only.
type ramFile struct {
	path string
	file *os.File
	// given is set once QEMU has it.
	given atomic.Bool
}

func openRAMFile(path string) (*ramFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open template: %w", err)
	}
	return &ramFile{path: path, file: f}, nil
}

// atCWD is AT_FDCWD as a filter sees it.
const atCWD = allBits + 1 + unix.AT_FDCWD

// watched: what the guest opens is named by a descriptor of a directory instead.
func (r *ramFile) watched() watch {
	return watch{"openat": {{{0, allBits, atCWD}, {2, unix.O_ACCMODE, unix.O_RDWR}}}}
}

// handle reports whether it has answered.
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

// check fails if QEMU has opened the file by itself.
func (r *ramFile) check() error {
	if r.given.Load() {
		return nil
	}
	return errors.New("qemu did not take the template's memory read-only")
}
