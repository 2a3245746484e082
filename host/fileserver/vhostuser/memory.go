package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"math"

	"golang.org/x/sys/unix"
)

// Memory is the address space of the vmm, by the vmm's own addresses: what the file
// /proc/PID/mem is. It is read and written by value and never mapped, so RAM that is
// private to the vmm, as that of a clone of a template is, serves as well as shared RAM.
type Memory interface {
	io.ReaderAt
	io.WriterAt
}

// errGone is of a vmm that has no memory any more: it ends.
var errGone = errors.New("the memory of the virtual machine is gone")

// ProcMem is the Memory of an open descriptor of /proc/PID/mem.
type ProcMem int

// ReadAt implements io.ReaderAt.
func (m ProcMem) ReadAt(p []byte, off int64) (n int, err error) {
	return transfer(unix.Pread, int(m), p, off)
}

// WriteAt implements io.WriterAt.
func (m ProcMem) WriteAt(p []byte, off int64) (n int, err error) {
	return transfer(unix.Pwrite, int(m), p, off)
}

func transfer(call func(int, []byte, int64) (int, error), fd int, p []byte, off int64) (done int, err error) {
	for done < len(p) {
		n, err := call(fd, p[done:], off+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return done, err
		case n == 0:
			return done, errGone
		default:
			done += n
		}
	}
	return done, nil
}

// region is a part of the guest's RAM.
type region struct {
	guest uint64 // address in the guest
	size  uint64 // in bytes
	user  uint64 // address in the vmm
}

// regions are all that the vmm has told of; nothing beside them is ever accessed.
type regions []region

const (
	maxRegions = 8
	regionSize = 32 // of one in a message, in bytes
	// maxAddress is beyond what a process of x86_64 can map, and fits an int64.
	maxAddress = 1 << 56
)

// check refuses regions whose ends cannot be computed with.
func (all regions) check() error {
	for i, r := range all {
		if r.size == 0 || r.size > maxAddress || r.user > maxAddress || r.guest > math.MaxUint64-r.size {
			return fmt.Errorf("region %d of memory, %d bytes at %#x for the guest's %#x, cannot be", i, r.size, r.user, r.guest)
		}
	}
	return nil
}

// inside says whether n bytes at an address of the vmm lie in one region.
func (all regions) inside(user, n uint64) bool {
	for _, r := range all {
		if user >= r.user && user-r.user < r.size && n <= r.size-(user-r.user) {
			return true
		}
	}
	return false
}

// find returns the vmm's address of n bytes at an address of the guest.
func (all regions) find(guest, n uint64) (user uint64, found bool) {
	for _, r := range all {
		if guest >= r.guest && guest-r.guest < r.size && n <= r.size-(guest-r.guest) {
			return r.user + (guest - r.guest), true
		}
	}
	return 0, false
}
