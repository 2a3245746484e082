package fileserver

import (
	"golang.org/x/sys/unix"
)

// find opens the entry name of a directory. Only the last component of the path is looked
// at, and never followed: symbolic links are the client's kernel's to follow.
func find(parent *node, name string) (int, unix.Errno) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	}
	for {
		fd, err := unix.Openat2(parent.fd, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN { //nolint:errorlint // Openat2 returns the number itself
			return fd, errnoOf(err)
		}
	}
}

// lookUp counts a look-up of the entry name of parent. The node is in use.
func (s *Server) lookUp(parent *node, name string, st *unix.Statx_t) (*node, unix.Errno) {
	fd, errno := find(parent, name)
	if errno != 0 {
		return nil, errno
	}
	return s.enter(parent, name, fd, st)
}

// enter counts a look-up of the inode that fd holds, name below parent, and takes fd over.
func (s *Server) enter(parent *node, name string, fd int, st *unix.Statx_t) (*node, unix.Errno) {
	if errno := statx(fd, st); errno != 0 {
		unix.Close(fd)
		return nil, errno
	}
	return s.nodes.enter(fd, st, parent, name)
}

// directory finds the directory that a call is about; it is in use.
func (s *Server) directory(id uint64) (*node, unix.Errno) {
	n, errno := s.nodes.use(id)
	if errno != 0 {
		return nil, errno
	}
	if n.format != unix.S_IFDIR {
		s.nodes.done(n)
		return nil, unix.ENOTDIR
	}
	return n, 0
}

func (s *Server) lookup(c *call) unix.Errno {
	name, errno := c.name()
	if errno != 0 {
		return errno
	}
	parent, errno := s.directory(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(parent)
	errno = s.answerEntry(c, parent, name)
	if errno == unix.ENOENT && s.export.Cache.Negative > 0 {
		c.put64(0)
		c.put64(0)
		c.putTimeouts(s.export.Cache.Negative, 0)
		c.pad(attrSize)
		return 0
	}
	return errno
}

// answerEntry looks up name and answers with what it is.
func (s *Server) answerEntry(c *call, parent *node, name string) unix.Errno {
	var st unix.Statx_t
	n, errno := s.lookUp(parent, name, &st)
	if errno != 0 {
		return errno
	}
	s.putEntry(c, n, &st)
	s.nodes.done(n)
	return 0
}

func (s *Server) forget(c *call) unix.Errno {
	if count := c.u64(); !c.short {
		s.nodes.forget(c.nodeID, count)
	}
	return 0
}

func (s *Server) batchForget(c *call) unix.Errno {
	count := c.u32()
	c.skip(4)
	for range count {
		id, lookups := c.u64(), c.u64()
		if c.short {
			break
		}
		s.nodes.forget(id, lookups)
	}
	return 0
}

func (s *Server) readlink(c *call) unix.Errno {
	n, errno := s.nodes.use(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(n)
	if n.format != unix.S_IFLNK {
		return unix.EINVAL
	}
	room := c.room(unix.PathMax)
	if len(room) == 0 {
		return unix.EIO
	}
	size, err := unix.Readlinkat(n.fd, "", room)
	if err != nil {
		return errnoOf(err)
	}
	c.grow(size)
	return 0
}
