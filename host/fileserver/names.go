package fileserver

import (
	"golang.org/x/sys/unix"
)

func (s *Server) unlink(c *call) unix.Errno { return s.remove(c, 0) }
func (s *Server) rmdir(c *call) unix.Errno  { return s.remove(c, unix.AT_REMOVEDIR) }

func (s *Server) remove(c *call, flags int) unix.Errno {
	name, errno := c.name()
	if errno != 0 {
		return errno
	}
	parent, errno := s.directory(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(parent)
	return errnoOf(unix.Unlinkat(parent.fd, name, flags))
}

func (s *Server) rename(c *call) unix.Errno {
	return s.renameTo(c, c.u64(), 0)
}

func (s *Server) rename2(c *call) unix.Errno {
	target, flags := c.u64(), c.u32()
	c.skip(4)
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE|unix.RENAME_WHITEOUT) != 0 {
		return unix.EINVAL
	}
	return s.renameTo(c, target, flags)
}

func (s *Server) renameTo(c *call, target uint64, flags uint32) unix.Errno {
	from, errno := c.name()
	if errno != 0 {
		return errno
	}
	to, errno := c.name()
	if errno != 0 {
		return errno
	}
	source, errno := s.directory(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(source)
	goal, errno := s.directory(target)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(goal)
	do := func() unix.Errno {
		if err := unix.Renameat2(source.fd, from, goal.fd, to, uint(flags)); err != nil {
			return errnoOf(err)
		}
		s.nodes.renamed(goal, to)
		if flags&unix.RENAME_EXCHANGE != 0 {
			s.nodes.renamed(source, from)
		}
		return 0
	}
	if flags&unix.RENAME_WHITEOUT == 0 {
		return do()
	}
	as, errno := s.creator(c, 0) // the whiteout is a new file
	if errno != 0 {
		return errno
	}
	return s.threads.run(as, do)
}

// linkNode is LINK: another name for an inode.
func (s *Server) linkNode(c *call) unix.Errno {
	old := c.u64()
	name, errno := c.name()
	if errno != 0 {
		return errno
	}
	parent, errno := s.directory(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(parent)
	n, errno := s.nodes.use(old)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(n)
	// The link in /proc is followed once, to the inode itself. AT_EMPTY_PATH would need
	// CAP_DAC_READ_SEARCH.
	if err := unix.Linkat(s.proc, link(n.fd), parent.fd, name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return errnoOf(err)
	}
	var st unix.Statx_t
	if errno := statx(n.fd, &st); errno != 0 {
		return errno
	}
	if !s.nodes.lookedUp(n, parent, name) {
		return unix.ESTALE
	}
	s.putEntry(c, n, &st)
	return 0
}
