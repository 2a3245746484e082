package fileserver

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The flags of an inode (chattr, lsattr) are read and written by ioctl. They are the only
// ones that are passed on: others reach into drivers and file systems of the host. Of the
// extended kind what is read only: to write it would change the project that a quota is for.
const (
	getFlags        = 0x80086601 // FS_IOC_GETFLAGS; its argument has 4 bytes, whatever it says
	setFlags        = 0x40086602 // FS_IOC_SETFLAGS
	getExtended     = 0x801c581f // FS_IOC_FSGETXATTR
	extendedSize    = 28
	ioctlOutSize    = 16
	inodeFlagsBytes = 4
)

func (s *Server) ioctl(c *call) unix.Errno {
	id := c.u64()
	c.skip(4)
	command := c.u32()
	c.skip(8)
	in, out := c.u32(), c.u32()
	if c.short || uint64(in) > uint64(len(c.in)) {
		return unix.EINVAL
	}
	var argument [extendedSize]byte
	answer := 0
	switch {
	case command == getFlags && out >= inodeFlagsBytes:
		answer = inodeFlagsBytes
	case command == getExtended && out >= extendedSize:
		answer = extendedSize
	case command == setFlags && in >= inodeFlagsBytes:
		if s.export.ReadOnly {
			return unix.EROFS
		}
		copy(argument[:inodeFlagsBytes], c.in)
	default:
		return unix.ENOTTY
	}
	h, errno := s.handle(c, id)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(h.fd), uintptr(command), uintptr(unsafe.Pointer(&argument[0]))); errno != 0 {
		return errno
	}
	c.pad(ioctlOutSize) // its result and flags
	c.putBytes(argument[:answer])
	return 0
}
