package fileserver

import (
	"golang.org/x/sys/unix"
)

// minorStripsGroup is the client's version (Linux 6.0) from which its kernel takes the
// set-group-id bit from a new file itself, knowing the groups of the process.
const minorStripsGroup = 37

// creator is in whose name a new file is made.
func (s *Server) creator(c *call, umask uint32) (credential, unix.Errno) {
	uid, known := s.uids.host(c.uid)
	gid, knownToo := s.gids.host(c.gid)
	if !known || !knownToo {
		return credential{}, unix.EOVERFLOW
	}
	session := s.session.Load()
	stripped := session != nil && session.minor < minorStripsGroup
	return credential{uid: uid, gid: gid, umask: umask, stripped: stripped}, 0
}

// make makes an entry of the directory that the call is about by do, and answers with it.
func (s *Server) make(c *call, name string, umask uint32, do func(dir int) error) unix.Errno {
	as, errno := s.creator(c, umask)
	if errno != 0 {
		return errno
	}
	parent, errno := s.directory(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(parent)
	if errno := s.threads.run(as, func() unix.Errno { return errnoOf(do(parent.fd)) }); errno != 0 {
		return errno
	}
	return s.answerEntry(c, parent, name)
}

func (s *Server) mknod(c *call) unix.Errno {
	mode, device, umask := c.u32(), c.u32(), c.u32()
	c.skip(4)
	name, errno := c.name()
	if errno != 0 {
		return errno
	}
	switch mode & unix.S_IFMT {
	case 0, unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
		device = 0
	case unix.S_IFCHR, unix.S_IFBLK:
		// 0:0 is no device: overlays mark a removed name by it.
		whiteout := mode&unix.S_IFMT == unix.S_IFCHR && device == 0
		if !s.export.Devices && !whiteout {
			return unix.EPERM
		}
	default:
		return unix.EINVAL
	}
	major, minor := device&0xfff00>>8, device&0xff|device>>12&0xfff00
	return s.make(c, name, umask, func(dir int) error {
		return unix.Mknodat(dir, name, mode, int(unix.Mkdev(major, minor)))
	})
}

func (s *Server) mkdir(c *call) unix.Errno {
	mode, umask := c.u32(), c.u32()
	name, errno := c.name()
	if errno != 0 {
		return errno
	}
	return s.make(c, name, umask, func(dir int) error { return unix.Mkdirat(dir, name, mode&0o7777) })
}

func (s *Server) symlink(c *call) unix.Errno {
	name, errno := c.name()
	if errno != 0 {
		return errno
	}
	target, errno := c.text()
	if errno != 0 {
		return errno
	}
	return s.make(c, name, 0, func(dir int) error { return unix.Symlinkat(target, dir, name) })
}

// create makes a regular file and opens it.
func (s *Server) create(c *call) unix.Errno {
	asked, mode, umask := c.u32(), c.u32(), c.u32()
	c.skip(4)
	name, errno := c.name()
	if errno != 0 {
		return errno
	}
	errno = s.createOpen(c, name, asked, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, mode, umask)
	if errno == unix.EEXIST && asked&unix.O_EXCL == 0 {
		// The file has come meanwhile, and whether the process may open it has not been
		// decided yet. The client's kernel looks the name up again and decides.
		return unix.ESTALE
	}
	return errno
}

// tmpfile makes a regular file without a name. What the client sends as one means nothing.
func (s *Server) tmpfile(c *call) unix.Errno {
	asked, mode, umask := c.u32(), c.u32(), c.u32()
	how := unix.O_TMPFILE | int(asked)&unix.O_EXCL // O_EXCL: nor will it ever have one
	return s.createOpen(c, ".", asked, how, mode, umask)
}

func (s *Server) createOpen(c *call, name string, asked uint32, how int, mode, umask uint32) unix.Errno {
	flags, errno := s.hostFlags(asked)
	if errno != 0 {
		return errno
	}
	as, errno := s.creator(c, umask)
	if errno != 0 {
		return errno
	}
	parent, errno := s.directory(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(parent)
	fd := -1
	errno = s.threads.run(as, func() (errno unix.Errno) {
		fd, errno = retryOpen(parent.fd, name, flags|how|unix.O_CLOEXEC, mode&0o7777)
		return errno
	})
	if errno != 0 {
		return errno
	}
	// By the descriptor, not by the name, which may be another file's by now.
	path, errno := retryOpen(s.proc, link(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	if errno != 0 {
		unix.Close(fd)
		return errno
	}
	var st unix.Statx_t
	n, errno := s.enter(parent, name, path, &st)
	if errno != 0 {
		unix.Close(fd)
		return errno
	}
	defer s.nodes.done(n)
	h, errno := s.keep(n, fd, flags&unix.O_DIRECT != 0)
	if errno != 0 {
		s.nodes.forget(n.id, 1)
		return errno
	}
	s.putEntry(c, n, &st)
	s.putOpen(c, h)
	return 0
}
