package fileserver

import (
	"math"

	"golang.org/x/sys/unix"
)

// A change is a fuse_setattr_in.
type change struct {
	valid        uint32
	handle, size uint64
	atime, mtime unix.Timespec
	mode         uint32
	uid, gid     uint32
}

func (c *call) change() change {
	var w change
	w.valid = c.u32()
	c.skip(4)
	w.handle, w.size = c.u64(), c.u64()
	c.skip(8)
	w.atime.Sec, w.mtime.Sec = int64(c.u64()), int64(c.u64())
	c.skip(8)
	w.atime.Nsec, w.mtime.Nsec = int64(c.u32()), int64(c.u32())
	c.skip(4)
	w.mode = c.u32()
	c.skip(4)
	w.uid, w.gid = c.u32(), c.u32()
	c.skip(4)
	return w
}

func (s *Server) setattr(c *call) unix.Errno {
	w := c.change()
	if c.short {
		return unix.EINVAL
	}
	n, errno := s.nodes.use(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(n)
	const others = setMode | setSize | setAtime | setMtime | setAtimeNow | setMtimeNow
	// Of chown(-1, -1) nothing is left but that the host notes the time of a change.
	if w.valid&(setUID|setGID) != 0 || w.valid&others == 0 {
		// Whether the user could keep a set-group-id bit that does not come with the right to
		// run, the message does not say; root's processes can.
		errno = s.stripping(c, n, c.uid != 0, func() unix.Errno { return s.chown(n, &w) })
	}
	if errno == 0 && w.valid&setMode != 0 {
		errno = s.chmod(n, w.mode)
	}
	if errno == 0 && w.valid&setSize != 0 {
		errno = s.truncate(c, n, &w)
	}
	if errno == 0 && w.valid&(setAtime|setMtime|setAtimeNow|setMtimeNow) != 0 {
		errno = setTimes(n, &w)
	}
	if errno != 0 {
		return errno
	}
	return s.putAttrOut(c, n)
}

// chown lets the host's kernel take set-user-id bits and file capabilities away, as it does
// for root too.
func (s *Server) chown(n *node, w *change) unix.Errno {
	uid, gid := uint32(math.MaxUint32), uint32(math.MaxUint32)
	known := true
	if w.valid&setUID != 0 {
		uid, known = s.uids.host(w.uid)
	}
	if known && w.valid&setGID != 0 {
		gid, known = s.gids.host(w.gid)
	}
	if !known {
		return unix.EINVAL
	}
	return errnoOf(unix.Fchownat(n.fd, "", int(int32(uid)), int(int32(gid)), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW))
}

func (s *Server) chmod(n *node, mode uint32) unix.Errno {
	if n.format == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return errnoOf(unix.Fchmodat(s.proc, link(n.fd), mode&0o7777, 0))
}

func (s *Server) truncate(c *call, n *node, w *change) unix.Errno {
	if n.format != unix.S_IFREG {
		return unix.EINVAL
	}
	if w.size > math.MaxInt64 {
		return unix.EFBIG
	}
	fd := -1
	if w.valid&setHandle != 0 {
		h, errno := s.handle(c, w.handle)
		if errno != 0 {
			return errno
		}
		defer s.letGo(h)
		fd = h.fd
	} else {
		opened, errno := s.reopen(n, unix.O_WRONLY)
		if errno != 0 {
			return errno
		}
		defer unix.Close(opened)
		fd = opened
	}
	return s.stripping(c, n, w.valid&setKillPrivileges != 0, func() unix.Errno {
		for {
			err := unix.Ftruncate(fd, int64(w.size))
			if err != unix.EINTR { //nolint:errorlint // Ftruncate returns the number itself
				return errnoOf(err)
			}
		}
	})
}

// stripping calls do such that the host takes set-user-id and set-group-id bits from the
// file, if the client asks for that and there are any.
func (s *Server) stripping(c *call, n *node, kill bool, do func() unix.Errno) unix.Errno {
	if !kill || !n.setsID() {
		return do()
	}
	as, errno := s.creator(c, 0)
	if errno != 0 {
		return errno
	}
	as.stripped = true
	return s.threads.run(as, do)
}

// setsID tells whether the file has a set-user-id or set-group-id bit.
func (n *node) setsID() bool {
	var st unix.Statx_t
	return statxOf(n.fd, unix.STATX_MODE, &st) == 0 && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
}

func setTimes(n *node, w *change) unix.Errno {
	times := []unix.Timespec{w.atime, w.mtime}
	for i, bits := range [][2]uint32{{setAtime, setAtimeNow}, {setMtime, setMtimeNow}} {
		switch {
		case w.valid&bits[1] != 0:
			times[i].Nsec = unix.UTIME_NOW
		case w.valid&bits[0] == 0:
			times[i].Nsec = unix.UTIME_OMIT
		case times[i].Nsec >= 1e9: // UTIME_NOW and UTIME_OMIT are such, and were not asked for
			return unix.EINVAL
		}
	}
	return errnoOf(unix.UtimesNanoAt(n.fd, "", times, unix.AT_EMPTY_PATH))
}
