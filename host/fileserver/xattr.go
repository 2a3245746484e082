package fileserver

import (
	"bytes"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxXattr     = 64 << 10 // XATTR_SIZE_MAX and XATTR_LIST_MAX
	accessACL    = "system.posix_acl_access"
	defaultACL   = "system.posix_acl_default"
	capabilities = "security.capability"
)

// xattrRefused says why an attribute is none of the client's; 0 where it may have it.
func (s *Server) xattrRefused(name string, set bool) unix.Errno {
	space, _, _ := strings.Cut(name, ".")
	switch {
	case s.export.NoXattr:
		return unix.EOPNOTSUPP
	case len(name) > unix.NAME_MAX:
		return unix.ERANGE
	case space == "user", name == accessACL, name == defaultACL, name == capabilities:
		return 0
	case space == "trusted" && s.export.Trusted:
		return 0
	case space == "trusted" && set, space == "security" && set:
		return unix.EPERM // labels are of the host's security modules
	case space == "trusted":
		return unix.ENODATA
	case space == "security":
		return 0
	}
	return unix.EOPNOTSUPP
}

// onNode calls do with the inode's name in /proc/self/fd, as system calls on extended
// attributes take no O_PATH descriptor.
func (s *Server) onNode(c *call, do func(path string) error) unix.Errno {
	n, errno := s.nodes.use(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(n)
	if s.xattrAt {
		return errnoOf(do(link(n.fd)))
	}
	return s.threads.run(s.threads.own, func() unix.Errno { return errnoOf(do(link(n.fd))) })
}

func (s *Server) getxattr(c *call) unix.Errno {
	size := c.u32()
	c.skip(4)
	name, errno := c.text()
	if errno != 0 {
		return errno
	}
	if errno := s.xattrRefused(name, false); errno != 0 {
		return errno
	}
	value := c.room(min(size, maxXattr))
	n := 0
	errno = s.onNode(c, func(path string) (err error) {
		if s.xattrAt {
			n, err = xattrAt(unix.SYS_GETXATTRAT, s.proc, path, name, value, 0)
		} else {
			n, err = unix.Getxattr(path, name, value)
		}
		return err
	})
	if errno != 0 {
		return errno
	}
	if size == 0 {
		c.put32(uint32(n))
		c.put32(0)
		return 0
	}
	if len(value) == 0 && n > 0 { // no room at all asks for the size, which is no value
		return unix.ERANGE
	}
	s.mapACL(name, value[:n], s.uids.guest, s.gids.guest)
	c.grow(n)
	return 0
}

func (s *Server) setxattr(c *call) unix.Errno {
	size, flags, more := c.u32(), c.u32(), uint32(0)
	if s.has(initSetxattrExt) {
		more = c.u32()
		c.skip(4)
	}
	name, errno := c.text()
	if errno != 0 {
		return errno
	}
	if errno := s.xattrRefused(name, true); errno != 0 {
		return errno
	}
	if uint64(size) > uint64(len(c.in)) {
		return unix.EINVAL
	}
	if size > maxXattr {
		return unix.E2BIG
	}
	value := bytes.Clone(c.in[:size])
	known := true
	hostOf := func(m idMap) func(uint32) uint32 {
		return func(id uint32) uint32 {
			host, ok := m.host(id)
			known = known && ok
			return host
		}
	}
	s.mapACL(name, value, hostOf(s.uids), hostOf(s.gids))
	if !known {
		return unix.EINVAL
	}
	return s.onNode(c, func(path string) (err error) {
		if s.xattrAt {
			_, err = xattrAt(unix.SYS_SETXATTRAT, s.proc, path, name, value, int(flags))
		} else {
			err = unix.Setxattr(path, name, value, int(flags))
		}
		if err == nil && name == accessACL && more&setxattrKillGroup != 0 {
			return s.stripGroup(path)
		}
		return err
	})
}

// stripGroup takes the set-group-id bit from a file whose ACL was set by one who is not of
// its group.
func (s *Server) stripGroup(path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(s.proc, path, &st, 0); err != nil || st.Mode&unix.S_ISGID == 0 {
		return err
	}
	return unix.Fchmodat(s.proc, path, st.Mode&0o7777&^unix.S_ISGID, 0)
}

// mapACL changes the ids in the value of an ACL. Anything else it leaves alone, as it does a
// value that is no ACL, which the kernel refuses.
func (s *Server) mapACL(name string, value []byte, uid, gid func(uint32) uint32) {
	const header, entry, user, group = 4, 8, 2, 8
	if name != accessACL && name != defaultACL || len(s.uids) == 0 && len(s.gids) == 0 || len(value) < header {
		return
	}
	for rest := value[header:]; len(rest) >= entry; rest = rest[entry:] {
		switch order.Uint16(rest) {
		case user:
			order.PutUint32(rest[4:], uid(order.Uint32(rest[4:])))
		case group:
			order.PutUint32(rest[4:], gid(order.Uint32(rest[4:])))
		}
	}
}

func (s *Server) listxattr(c *call) unix.Errno {
	size := c.u32()
	if c.short {
		return unix.EINVAL
	}
	if s.export.NoXattr {
		return unix.EOPNOTSUPP
	}
	memory := buffers.get()
	defer buffers.put(memory)
	list, n := memory.slice()[:maxXattr], 0
	errno := s.onNode(c, func(path string) (err error) {
		if s.xattrAt {
			n, err = listxattrAt(s.proc, path, list)
		} else {
			n, err = unix.Listxattr(path, list)
		}
		return err
	})
	if errno != 0 {
		return errno
	}
	list = list[:n]
	kept := list[:0]
	for name := range bytes.SplitAfterSeq(list, []byte{0}) {
		if s.export.Trusted || !bytes.HasPrefix(name, []byte("trusted.")) {
			kept = append(kept, name...)
		}
	}
	if size == 0 {
		c.put32(uint32(len(kept)))
		c.put32(0)
		return 0
	}
	if uint64(len(kept)) > uint64(len(c.room(size))) {
		return unix.ERANGE
	}
	c.putBytes(kept)
	return 0
}

func (s *Server) removexattr(c *call) unix.Errno {
	name, errno := c.text()
	if errno != 0 {
		return errno
	}
	if errno := s.xattrRefused(name, true); errno != 0 {
		return errno
	}
	return s.onNode(c, func(path string) error {
		if s.xattrAt {
			return removexattrAt(s.proc, path, name)
		}
		return unix.Removexattr(path, name)
	})
}
