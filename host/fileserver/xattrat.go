package fileserver

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Since Linux 6.13 system calls on extended attributes take a directory and a name; before,
// only a path, for which a thread needs a working directory of its own.

// xattrArgs is struct xattr_args.
type xattrArgs struct {
	value uint64
	size  uint32
	flags uint32
}

// hasXattrAt tells whether the host's kernel has the newer calls.
func hasXattrAt(proc int) bool {
	_, err := listxattrAt(proc, link(proc), nil)
	return err != unix.ENOSYS && err != unix.EPERM //nolint:errorlint // the number itself; EPERM is a filter's
}

func address(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

func xattrAt(call uintptr, dir int, path, name string, value []byte, flags int) (int, error) {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	n, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	var pin runtime.Pinner // the kernel is told the address by a number, which holds nothing
	defer pin.Unpin()
	if len(value) > 0 {
		pin.Pin(address(value))
	}
	args := xattrArgs{value: uint64(uintptr(address(value))), size: uint32(len(value)), flags: uint32(flags)}
	size, _, errno := unix.Syscall6(call, uintptr(dir), uintptr(unsafe.Pointer(p)), 0, uintptr(unsafe.Pointer(n)),
		uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	if errno != 0 {
		return 0, errno
	}
	return int(size), nil
}

func listxattrAt(dir int, path string, list []byte) (int, error) {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	size, _, errno := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(p)), 0,
		uintptr(address(list)), uintptr(len(list)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(size), nil
}

func removexattrAt(dir int, path, name string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	n, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall6(unix.SYS_REMOVEXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(p)), 0, uintptr(unsafe.Pointer(n)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
