package fileserver

import (
	"golang.org/x/sys/unix"
)

// passedFlags are the flags of open that are the file's own matter on the host. O_APPEND is
// not among them: the protocol says with each write whether it appends.
const passedFlags = unix.O_ACCMODE | unix.O_TRUNC | unix.O_DIRECT | unix.O_NOATIME | unix.O_SYNC | unix.O_DSYNC

// hostFlags are the flags to open a regular file with for a client that asked for flags.
func (s *Server) hostFlags(flags uint32) (int, unix.Errno) {
	host := int(flags) & passedFlags
	writes := host&unix.O_ACCMODE != unix.O_RDONLY
	if s.export.ReadOnly && (writes || host&unix.O_TRUNC != 0) {
		return 0, unix.EROFS
	}
	if writes && s.has(initWritebackCache) {
		// The client's kernel reads a page that it writes a part of.
		host = host&^unix.O_ACCMODE | unix.O_RDWR
	}
	return host, 0
}

func (s *Server) open(c *call) unix.Errno {
	asked, how := c.u32(), c.u32()
	n, errno := s.nodes.use(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(n)
	if n.format == unix.S_IFDIR {
		return unix.EISDIR
	}
	flags, errno := s.hostFlags(asked)
	if errno != 0 {
		return errno
	}
	fd := -1
	errno = s.stripping(c, n, how&openKillPrivileges != 0 && flags&unix.O_TRUNC != 0, func() (errno unix.Errno) {
		fd, errno = s.reopen(n, flags)
		if errno == unix.EPERM && asked&unix.O_APPEND != 0 {
			fd, errno = s.reopen(n, flags|unix.O_APPEND) // a file that can only grow (chattr +a)
		}
		return errno
	})
	if errno != 0 {
		return errno
	}
	return s.answerOpen(c, n, fd, flags&unix.O_DIRECT != 0)
}

// answerOpen makes a handle of fd and answers with its number.
func (s *Server) answerOpen(c *call, n *node, fd int, direct bool) unix.Errno {
	h, errno := s.keep(n, fd, direct)
	if errno != 0 {
		return errno
	}
	s.putOpen(c, h)
	return 0
}

func (s *Server) putOpen(c *call, h *handle) {
	flags := uint32(0)
	if s.export.Cache.Keep {
		flags = openKeepCache
		if h.node.format == unix.S_IFDIR {
			flags |= openCacheDir
		}
	}
	c.put64(h.id)
	c.put32(flags)
	c.put32(0)
}

func (s *Server) opendir(c *call) unix.Errno {
	n, errno := s.directory(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(n)
	fd, errno := s.reopen(n, unix.O_RDONLY)
	if errno != 0 {
		return errno
	}
	return s.answerOpen(c, n, fd, false)
}
