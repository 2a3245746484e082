package fileserver

import (
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
	n, errno := h.readAt(c.room(size), int64(offset))
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
