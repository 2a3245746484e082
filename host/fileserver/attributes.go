package fileserver

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

// statx looks at the inode that fd holds.
func statx(fd int, st *unix.Statx_t) unix.Errno { return statxOf(fd, statxMask, st) }

// noName is the empty string of C, which package unix would allocate for each call.
var noName byte

func statxOf(fd int, mask int, st *unix.Statx_t) unix.Errno {
	const flags = unix.AT_EMPTY_PATH | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&noName)), flags, uintptr(mask), uintptr(unsafe.Pointer(st)), 0)
		if errno != unix.EINTR {
			return errno
		}
	}
}

func (s *Server) getattr(c *call) unix.Errno {
	n, errno := s.nodes.use(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(n)
	return s.putAttrOut(c, n)
}

// putAttrOut answers with the attributes of n as they are.
func (s *Server) putAttrOut(c *call, n *node) unix.Errno {
	var st unix.Statx_t
	if errno := statx(n.fd, &st); errno != 0 {
		return errno
	}
	c.putTimeouts(s.export.Cache.Attr)
	c.put32(0)
	s.putAttr(c, n, &st)
	return 0
}

// putTimeouts appends how long each of the given is valid: all seconds first.
func (c *call) putTimeouts(valid ...time.Duration) {
	for _, d := range valid {
		c.put64(uint64(d / time.Second))
	}
	for _, d := range valid {
		c.put32(uint32(d % time.Second))
	}
}

// putAttr appends a fuse_attr.
func (s *Server) putAttr(c *call, n *node, st *unix.Statx_t) {
	c.put64(st.Ino)
	c.put64(st.Size)
	c.put64(st.Blocks)
	c.put64(uint64(st.Atime.Sec))
	c.put64(uint64(st.Mtime.Sec))
	c.put64(uint64(st.Ctime.Sec))
	c.put32(st.Atime.Nsec)
	c.put32(st.Mtime.Nsec)
	c.put32(st.Ctime.Nsec)
	c.put32(uint32(st.Mode))
	c.put32(st.Nlink)
	c.put32(s.uids.guest(st.Uid))
	c.put32(s.gids.guest(st.Gid))
	c.put32(deviceNumber(st.Rdev_major, st.Rdev_minor))
	c.put32(st.Blksize)
	c.put32(n.attrFlags())
}

func (n *node) attrFlags() uint32 {
	if n.submount {
		return attrSubmount
	}
	return 0
}

// deviceNumber is how the protocol writes the number of a device.
func deviceNumber(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// putEntry answers with a node that was looked up. On an error the look-up is taken back.
func (s *Server) putEntry(c *call, n *node, st *unix.Statx_t) {
	c.put64(n.id)
	c.put64(0) // generation: numbers are not used again
	c.putTimeouts(s.export.Cache.Entry, s.export.Cache.Attr)
	s.putAttr(c, n, st)
}
