package fileserver

import (
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// An identity tells inodes apart: the mount counts, as the same directory bound twice has
// other rights and other borders in each place.
type identity struct {
	major, minor uint32
	ino          uint64
	mount        uint64
}

func identityOf(st *unix.Statx_t) identity {
	return identity{st.Dev_major, st.Dev_minor, st.Ino, st.Mnt_id}
}

// A node is an inode that the client knows, held by an O_PATH descriptor: whatever is
// renamed or removed meanwhile, the descriptor is that inode and no other.
type node struct {
	id       uint64
	fd       int
	identity identity
	format   uint16 // S_IFMT of its mode, which no inode changes
	submount bool   // the root of another mount than its parent's

	// Guarded by the table.
	lookups uint64 // how often the client was told of the node and has not forgotten it
	uses    int    // calls and handles that work with it
}

// nodes is the table of inodes.
type nodes struct {
	mu         sync.Mutex
	byID       map[uint64]*node
	byIdentity map[identity]*node
	last       uint64
	limit      int
}

func newNodes(root *node, limit int) *nodes {
	root.id = rootID
	root.lookups = 1
	return &nodes{
		byID:       map[uint64]*node{rootID: root},
		byIdentity: map[identity]*node{root.identity: root},
		last:       rootID,
		limit:      limit,
	}
}

// use finds a node; the caller calls done when it has finished with it.
func (t *nodes) use(id uint64) (*node, unix.Errno) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		return nil, unix.ESTALE
	}
	n.uses++
	return n, 0
}

// again is use for a caller that uses n already.
func (t *nodes) again(n *node) *node {
	t.mu.Lock()
	n.uses++
	t.mu.Unlock()
	return n
}

func (t *nodes) done(n *node) {
	t.mu.Lock()
	n.uses--
	last := n.uses == 0 && n.lookups == 0
	t.mu.Unlock()
	if last {
		unix.Close(n.fd)
	}
}

// enter counts a look-up of the inode that fd holds, and takes fd over. The node is in use.
func (t *nodes) enter(fd int, st *unix.Statx_t, parentMount uint64) (*node, unix.Errno) {
	key := identityOf(st)
	t.mu.Lock()
	if n := t.byIdentity[key]; n != nil {
		n.lookups++
		n.uses++
		t.mu.Unlock()
		unix.Close(fd)
		return n, 0
	}
	if len(t.byID) >= t.limit {
		t.mu.Unlock()
		unix.Close(fd)
		return nil, unix.ENFILE
	}
	t.last++
	n := &node{
		id: t.last, fd: fd, identity: key, format: st.Mode & unix.S_IFMT,
		submount: key.mount != parentMount && st.Mode&unix.S_IFMT == unix.S_IFDIR,
		lookups:  1, uses: 1,
	}
	t.byID[n.id] = n
	t.byIdentity[key] = n
	t.mu.Unlock()
	return n, 0
}

// lookedUp counts another look-up of a node in use; false where the client forgot it
// meanwhile, and so has no number for it.
func (t *nodes) lookedUp(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.lookups == 0 {
		return false
	}
	n.lookups++
	return true
}

// forget takes back count look-ups. The root stays.
func (t *nodes) forget(id, count uint64) {
	t.mu.Lock()
	n := t.byID[id]
	if n == nil || id == rootID || count == 0 {
		t.mu.Unlock()
		return
	}
	n.lookups -= min(count, n.lookups)
	gone := n.lookups == 0
	if gone {
		delete(t.byID, id)
		delete(t.byIdentity, n.identity)
	}
	gone = gone && n.uses == 0
	t.mu.Unlock()
	if gone {
		unix.Close(n.fd)
	}
}

// reset forgets everything but the root.
func (t *nodes) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, n := range t.byID {
		if id == rootID {
			continue
		}
		n.lookups = 0
		delete(t.byID, id)
		delete(t.byIdentity, n.identity)
		if n.uses == 0 {
			unix.Close(n.fd)
		}
	}
}

// close forgets the root as well.
func (t *nodes) close() {
	t.reset()
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[rootID]
	if n == nil {
		return
	}
	n.lookups = 0
	delete(t.byID, rootID)
	delete(t.byIdentity, n.identity)
	if n.uses == 0 {
		unix.Close(n.fd)
	}
}

// link is the name of a descriptor in /proc/self/fd.
func link(fd int) string { return strconv.Itoa(fd) }

// reopen opens the inode of a node for input and output, if it is a regular file or a
// directory. Of anything else an open can wait for ever, or reach a driver of the host.
func (s *Server) reopen(n *node, flags int) (int, unix.Errno) {
	switch n.format {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		flags |= unix.O_DIRECTORY
	case unix.S_IFLNK:
		return -1, unix.ELOOP
	default:
		return -1, unix.ENXIO
	}
	return retryOpen(s.proc, link(n.fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
}

func retryOpen(dir int, name string, flags int, mode uint32) (int, unix.Errno) {
	for {
		fd, err := unix.Openat(dir, name, flags, mode)
		if err != unix.EINTR { //nolint:errorlint // Openat returns the number itself
			return fd, errnoOf(err)
		}
	}
}

// errnoOf is the number that a function of package unix returned as an error.
func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(unix.Errno); ok { //nolint:errorlint // the functions do not wrap it
		return errno
	}
	return unix.EIO
}
