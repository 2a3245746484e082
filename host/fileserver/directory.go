package fileserver

import (
	"bytes"
	"sync"

	"golang.org/x/sys/unix"
)

// A listing is where the reading of a directory stands. What the host returned and did not
// fit into an answer is kept for the next, unless the client goes elsewhere.
type listing struct {
	mu     sync.Mutex
	buffer []byte
	rest   []byte // of buffer, what has not been told
	offset uint64 // of the first entry in rest
}

// listingSize is how much of a directory is read at a time, in bytes.
const listingSize = 32 << 10

// direntHeader is the fixed part of a linux_dirent64: ino, off, reclen, type.
const direntHeader = 19

// seek goes to offset, an entry's d_off or 0 for the beginning.
func (l *listing) seek(fd int, offset uint64) unix.Errno {
	if l.buffer == nil {
		l.buffer = make([]byte, listingSize)
	} else if offset != 0 && offset == l.offset {
		return 0
	}
	l.rest, l.offset = nil, offset
	_, err := unix.Seek(fd, int64(offset), unix.SEEK_SET)
	return errnoOf(err)
}

// An entry is one name of a directory.
type entry struct {
	ino  uint64
	next uint64 // the offset of the entry behind
	kind byte
	name []byte
	size int // in the listing
}

// next is the first entry that has not been told; false at the end. It stays first until
// told is called.
func (l *listing) next(fd int) (e entry, more bool, errno unix.Errno) {
	if len(l.rest) == 0 {
		n, err := unix.Getdents(fd, l.buffer)
		if err != nil || n == 0 {
			return entry{}, false, errnoOf(err)
		}
		l.rest = l.buffer[:n]
	}
	if len(l.rest) < direntHeader {
		return entry{}, false, unix.EIO
	}
	e.ino = order.Uint64(l.rest)
	e.next = order.Uint64(l.rest[8:])
	e.size = int(order.Uint16(l.rest[16:]))
	e.kind = l.rest[18]
	if e.size < direntHeader || e.size > len(l.rest) {
		return entry{}, false, unix.EIO
	}
	e.name, _, _ = bytes.Cut(l.rest[direntHeader:e.size], []byte{0})
	return e, true, 0
}

func (l *listing) told(e *entry) {
	l.rest = l.rest[e.size:]
	l.offset = e.next
}

func (s *Server) readdir(c *call) unix.Errno     { return s.list(c, false) }
func (s *Server) readdirplus(c *call) unix.Errno { return s.list(c, true) }

// list answers READDIR, and READDIRPLUS with a look-up of each entry.
func (s *Server) list(c *call, plus bool) unix.Errno {
	id, offset, size := c.u64(), c.u64(), c.u32()
	if c.short {
		return unix.EINVAL
	}
	h, errno := s.handle(c, id)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	if h.node.format != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	c.out = c.out[:0:min(uint64(cap(c.out)), uint64(size))]
	l := &h.listing
	l.mu.Lock()
	defer l.mu.Unlock()
	if errno := l.seek(h.fd, offset); errno != 0 {
		return errno
	}
	for {
		e, more, errno := l.next(h.fd)
		if errno != 0 && len(c.out) == 0 {
			return errno
		}
		if errno != 0 || !more || !s.putListed(c, h.node, &e, plus) {
			if more && len(c.out) == 0 {
				return unix.EINVAL // no room for a single entry
			}
			return 0
		}
		l.told(&e)
	}
}

// putListed appends an entry of a listing; false where there is no room for it.
func (s *Server) putListed(c *call, dir *node, e *entry, plus bool) bool {
	size := direntSize + (len(e.name)+7)&^7
	if plus {
		size += entrySize
	}
	if cap(c.out)-len(c.out) < size {
		return false
	}
	name := string(e.name)
	ino := e.ino
	if dir.id == rootID && name == ".." {
		ino = dir.identity.ino // what is above the root is not the client's to know
	}
	if plus {
		var st unix.Statx_t
		n, errno := (*node)(nil), unix.ENOENT
		if checkName(name) == 0 {
			n, errno = s.lookUp(dir, name, &st)
		}
		if errno == 0 {
			s.putEntry(c, n, &st)
			s.nodes.done(n)
		} else { // gone meanwhile, or no name to look up: the client asks if it wants to know
			c.pad(entrySize)
		}
	}
	c.put64(ino)
	c.put64(e.next)
	c.put32(uint32(len(name)))
	c.put32(uint32(e.kind))
	c.putString(name)
	c.pad((8 - len(name)%8) % 8)
	return true
}
