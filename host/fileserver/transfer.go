package fileserver

import (
	"math"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// read reads from the file straight into the answer.
func (s *Server) read(c *call) unix.Errno {
	id, offset, size := c.u64(), c.u64(), c.u32()
	if c.short {
		return unix.EINVAL
	}
	h, errno := s.handle(c, id)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	room := c.room(min(size, s.export.Limits.Write))
	var n int
	if h.direct {
		n, errno = h.readDirect(room, int64(offset))
	} else {
		n, errno = h.readAt(room, int64(offset))
	}
	if errno != 0 {
		return errno
	}
	c.grow(n)
	return 0
}

// readAt reads until buffer is full or the file ends: a short answer is the file's end to
// the client's kernel.
func (h *handle) readAt(buffer []byte, offset int64) (int, unix.Errno) {
	if h.node.format != unix.S_IFREG {
		return 0, unix.EISDIR
	}
	done := 0
	for done < len(buffer) {
		n, err := unix.Pread(h.fd, buffer[done:], offset+int64(done))
		if err == unix.EINTR { //nolint:errorlint // Pread returns the number itself
			continue
		}
		if err != nil && done == 0 {
			return 0, errnoOf(err)
		}
		if err != nil || n == 0 {
			break
		}
		done += n
	}
	return done, 0
}

func (s *Server) write(c *call) unix.Errno {
	id, offset, size, how := c.u64(), c.u64(), c.u32(), c.u32()
	c.skip(8)
	flags := c.u32()
	c.skip(4)
	if c.short || uint64(size) > uint64(len(c.in)) || size > s.export.Limits.Write {
		return unix.EINVAL
	}
	h, errno := s.handle(c, id)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	if h.node.format != unix.S_IFREG {
		return unix.EBADF
	}
	data := c.in[:size]
	if h.direct {
		aligned := buffers.get()
		defer buffers.put(aligned)
		data = aligned.slice()[:copy(aligned.slice(), data)]
	}
	// The page cache writes at the place that a page is of, whatever the file was opened with.
	end := flags&unix.O_APPEND != 0 && how&writeCache == 0 && !s.has(initWritebackCache)
	var n int
	if how&writeKillPrivileges != 0 && h.node.setsID() {
		n, errno = s.writeStripping(c, h, data, int64(offset), end)
	} else {
		n, errno = h.writeAt(data, int64(offset), end)
	}
	if errno != 0 {
		return errno
	}
	c.put32(uint32(n))
	c.put32(0)
	return 0
}

// writeStripping is apart from write, which without it allocates nothing.
func (s *Server) writeStripping(c *call, h *handle, data []byte, offset int64, end bool) (n int, errno unix.Errno) {
	errno = s.stripping(c, h.node, true, func() (errno unix.Errno) {
		n, errno = h.writeAt(data, offset, end)
		return errno
	})
	return n, errno
}

// writeAt writes at offset, or at the end of the file as it is on the host.
func (h *handle) writeAt(data []byte, offset int64, end bool) (n int, errno unix.Errno) {
	for {
		var err error
		if end {
			n, err = unix.Pwritev2(h.fd, [][]byte{data}, 0, unix.RWF_APPEND)
		} else {
			n, err = unix.Pwrite(h.fd, data, offset)
		}
		if err != unix.EINTR { //nolint:errorlint // both return the number itself
			return n, errnoOf(err)
		}
	}
}

// readDirect reads for O_DIRECT, which wants memory that is aligned.
func (h *handle) readDirect(room []byte, offset int64) (int, unix.Errno) {
	aligned := buffers.get()
	defer buffers.put(aligned)
	n, errno := h.readAt(aligned.slice()[:min(len(room), maxDirect)], offset)
	copy(room, aligned.slice()[:n])
	return n, errno
}

const (
	maxDirect = 1 << 20
	alignment = 4096
)

// An aligned is memory that starts at a multiple of alignment.
type aligned struct{ memory []byte }

func (a *aligned) slice() []byte {
	skip := -uintptr(unsafe.Pointer(&a.memory[0])) & (alignment - 1)
	return a.memory[skip : skip+maxDirect]
}

type alignedPool struct{ pool sync.Pool }

var buffers alignedPool

func (p *alignedPool) get() *aligned {
	if a, ok := p.pool.Get().(*aligned); ok {
		return a
	}
	return &aligned{make([]byte, maxDirect+alignment)}
}

func (p *alignedPool) put(a *aligned) { p.pool.Put(a) }

func (s *Server) fsync(c *call) unix.Errno {
	id, flags := c.u64(), c.u32()
	if c.short {
		return unix.EINVAL
	}
	h, errno := s.handle(c, id)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	if flags&fsyncData != 0 {
		return errnoOf(unix.Fdatasync(h.fd))
	}
	return errnoOf(unix.Fsync(h.fd))
}

// syncfs writes out the file system that the node is on.
func (s *Server) syncfs(c *call) unix.Errno {
	n, errno := s.nodes.use(c.nodeID)
	if errno != 0 {
		return errno
	}
	defer s.nodes.done(n)
	fd, errno := s.reopen(n, unix.O_RDONLY)
	if errno != 0 {
		return errno
	}
	defer unix.Close(fd)
	s.syncing.Lock() // more at a time would only burden the host's disk
	defer s.syncing.Unlock()
	return errnoOf(unix.Syncfs(fd))
}

func (s *Server) fallocate(c *call) unix.Errno {
	id, offset, length, mode := c.u64(), c.u64(), c.u64(), c.u32()
	if c.short || offset > math.MaxInt64 || length > math.MaxInt64 {
		return unix.EINVAL
	}
	h, errno := s.handle(c, id)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	// The message does not say whether bits go; root's processes keep them.
	return s.stripping(c, h.node, c.uid != 0, func() unix.Errno {
		for {
			err := unix.Fallocate(h.fd, mode, int64(offset), int64(length))
			if err != unix.EINTR { //nolint:errorlint // Fallocate returns the number itself
				return errnoOf(err)
			}
		}
	})
}

func (s *Server) lseek(c *call) unix.Errno {
	id, offset, whence := c.u64(), c.u64(), c.u32()
	if c.short || whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return unix.EINVAL // the others are the client's kernel's own
	}
	h, errno := s.handle(c, id)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	if h.node.format != unix.S_IFREG {
		return unix.EINVAL
	}
	to, err := unix.Seek(h.fd, int64(offset), int(whence))
	if err != nil {
		return errnoOf(err)
	}
	c.put64(uint64(to))
	return 0
}

// maxCopy bounds how long one copy takes, in bytes; the client asks for the rest.
const maxCopy = 256 << 20

func (s *Server) copyFileRange(c *call) unix.Errno {
	from, fromOffset := c.u64(), int64(c.u64())
	node, to, toOffset := c.u64(), c.u64(), int64(c.u64())
	length, flags := c.u64(), c.u64()
	if c.short || flags != 0 {
		return unix.EINVAL
	}
	source, errno := s.handle(c, from)
	if errno != 0 {
		return errno
	}
	defer s.letGo(source)
	goal, errno := s.handleOf(node, to)
	if errno != 0 {
		return errno
	}
	defer s.letGo(goal)
	if source.node.format != unix.S_IFREG || goal.node.format != unix.S_IFREG {
		return unix.EINVAL
	}
	n := 0
	errno = s.stripping(c, goal.node, c.uid != 0, func() unix.Errno {
		for {
			var err error
			n, err = unix.CopyFileRange(source.fd, &fromOffset, goal.fd, &toOffset, int(min(length, maxCopy)), 0)
			if err != unix.EINTR { //nolint:errorlint // CopyFileRange returns the number itself
				return errnoOf(err)
			}
		}
	})
	if errno != 0 {
		return errno
	}
	c.put32(uint32(n))
	c.put32(0)
	return 0
}
