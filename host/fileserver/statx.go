package fileserver

import (
	"golang.org/x/sys/unix"
)

// statxAnswer is STATX: what GETATTR has no room for, such as the time of birth.
func (s *Server) statxAnswer(c *call) unix.Errno {
	n, errno := s.nodes.use(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(n)
	var st unix.Statx_t
	if errno := statx(n.fd, &st); errno != 0 {
		return errno
	}
	c.putTimeouts(s.export.Cache.Attr)
	c.put32(n.attrFlags())
	c.pad(16)
	c.put32(st.Mask & (unix.STATX_BASIC_STATS | unix.STATX_BTIME))
	c.put32(st.Blksize)
	c.put64(st.Attributes)
	c.put32(st.Nlink)
	c.put32(s.uids.guest(st.Uid))
	c.put32(s.gids.guest(st.Gid))
	c.put32(uint32(st.Mode)) // and two bytes that are spare
	c.put64(st.Ino)
	c.put64(st.Size)
	c.put64(st.Blocks)
	c.put64(st.Attributes_mask)
	for _, t := range []unix.StatxTimestamp{st.Atime, st.Btime, st.Ctime, st.Mtime} {
		c.put64(uint64(t.Sec))
		c.put32(t.Nsec)
		c.put32(0)
	}
	c.put32(st.Rdev_major)
	c.put32(st.Rdev_minor)
	c.put32(0) // the client's kernel has a device number of its own for the export
	c.put32(0)
	c.pad(14 * 8)
	return 0
}

func (s *Server) statfs(c *call) unix.Errno {
	id := c.nodeID
	if id == 0 {
		id = rootID
	}
	n, errno := s.nodes.use(id)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(n)
	var st unix.Statfs_t
	if err := unix.Fstatfs(n.fd, &st); err != nil {
		return errnoOf(err)
	}
	c.put64(st.Blocks)
	c.put64(st.Bfree)
	c.put64(st.Bavail)
	c.put64(st.Files)
	c.put64(st.Ffree)
	c.put32(uint32(st.Bsize))
	c.put32(uint32(st.Namelen))
	c.put32(uint32(st.Frsize))
	c.pad(28)
	return 0
}
