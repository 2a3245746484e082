package fileserver

import (
	"sync"

	"golang.org/x/sys/unix"
)

// A handle is an open file or directory of the client's.
type handle struct {
	id     uint64
	node   *node // in use as long as the handle is
	fd     int   // an open file description of its own
	direct bool  // opened with O_DIRECT: memory must be aligned

	listing listing // of a directory

	// locked are the owners that have locked ranges through this file; guarded by locks.
	locked map[*lockFile]struct{}

	uses int // guarded by the table; the table itself is one
}

// handles is the table of open files.
type handles struct {
	mu    sync.Mutex
	byID  map[uint64]*handle
	last  uint64
	limit int
}

func newHandles(limit int) *handles {
	return &handles{byID: map[uint64]*handle{}, limit: limit}
}

// add puts a handle into the table; false where it is full.
func (t *handles) add(h *handle) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byID) >= t.limit {
		return false
	}
	t.last++
	h.id, h.uses = t.last, 1
	t.byID[h.id] = h
	return true
}

func (t *handles) remove(id uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.byID[id]
	delete(t.byID, id)
	return h
}

// keep makes a handle of fd, an open description of n's inode, and takes fd over.
func (s *Server) keep(n *node, fd int, direct bool) (*handle, unix.Errno) {
	h := &handle{node: s.nodes.again(n), fd: fd, direct: direct}
	if !s.handles.add(h) {
		unix.Close(fd)
		s.nodes.done(n)
		return nil, unix.ENFILE
	}
	return h, 0
}

// handle finds an open file by its number; the caller calls letGo when it has finished.
// The node of the call must be the file's.
func (s *Server) handle(c *call, id uint64) (*handle, unix.Errno) { return s.handleOf(c.nodeID, id) }

func (s *Server) handleOf(node, id uint64) (*handle, unix.Errno) {
	s.handles.mu.Lock()
	defer s.handles.mu.Unlock()
	h := s.handles.byID[id]
	if h == nil || h.node.id != node {
		return nil, unix.EBADF
	}
	h.uses++
	return h, 0
}

// letGo closes the file once nobody uses it and the table no longer has it.
func (s *Server) letGo(h *handle) {
	s.handles.mu.Lock()
	h.uses--
	last := h.uses == 0
	s.handles.mu.Unlock()
	if last {
		unix.Close(h.fd)
		s.nodes.done(h.node)
	}
}

// closeAll closes every open file.
func (s *Server) closeAll() {
	s.handles.mu.Lock()
	all := s.handles.byID
	s.handles.byID = map[uint64]*handle{}
	s.handles.mu.Unlock()
	for _, h := range all {
		s.letGo(h)
	}
}

// release is RELEASE and RELEASEDIR.
func (s *Server) release(c *call) unix.Errno {
	id := c.u64()
	h, errno := s.handle(c, id)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	if s.handles.remove(id) == nil { // another call was quicker
		return unix.EBADF
	}
	s.unlockHandle(h)
	s.letGo(h) // the table's use
	return 0
}
