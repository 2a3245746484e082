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
// renamed or removed meanwhile, the descriptor is that inode and no other. A client can know
// more inodes than a process can have descriptors. The ones that have not been used for
// longest are closed, and found again by name: see descriptors.go.
type node struct {
	id       uint64
	identity identity
	format   uint16 // S_IFMT of its mode, which no inode changes
	submount bool   // the root of another mount than its parent's

	// fd is guarded by the table while the node is not in use, and stays as long as it is;
	// -1 while closed.
	fd int

	// Guarded by the table.
	lookups uint64 // how often the client was told of the node and has not forgotten it
	uses    int    // calls and handles that work with it
	parent  uint64 // where it was looked up last,
	name    string // and by what name
	birth   unix.StatxTimestamp

	newer, older *node // among the open nodes of its kind
}

// nodes is the table of inodes.
type nodes struct {
	mu         sync.Mutex
	byID       map[uint64]*node
	byIdentity map[identity]*node
	last       uint64
	limit      int
	open       descriptors
}

func newNodes(root *node, limits Limits) *nodes {
	root.id = rootID
	root.lookups = 1
	return &nodes{
		byID:       map[uint64]*node{rootID: root},
		byIdentity: map[identity]*node{root.identity: root},
		last:       rootID,
		limit:      limits.Nodes,
		open:       descriptors{limit: limits.Descriptors},
	}
}

// use finds a node, which is open from then on; the caller calls done when it has finished
// with it.
func (t *nodes) use(id uint64) (*node, unix.Errno) { return t.useBelow(id, maxReopened) }

func (t *nodes) useBelow(id uint64, depth int) (*node, unix.Errno) {
	t.mu.Lock()
	n := t.byID[id]
	if n == nil {
		t.mu.Unlock()
		return nil, unix.ESTALE
	}
	n.uses++
	if n.fd >= 0 {
		t.open.touch(n)
		t.mu.Unlock()
		return n, 0
	}
	parent, name := n.parent, n.name
	t.mu.Unlock()
	if errno := t.findAgain(n, parent, name, depth); errno != 0 {
		t.done(n)
		return nil, errno
	}
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
	t.closeIfGone(n)
	t.mu.Unlock()
}

// closeIfGone closes a node that nobody uses and the client has forgotten.
func (t *nodes) closeIfGone(n *node) {
	if n.uses == 0 && n.lookups == 0 && n.fd >= 0 {
		t.open.remove(n)
		unix.Close(n.fd)
		n.fd = -1
	}
}

// enter counts a look-up of the inode that fd holds, and takes fd over. The node is in use.
func (t *nodes) enter(fd int, st *unix.Statx_t, parent *node, name string) (*node, unix.Errno) {
	key := identityOf(st)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byIdentity[key]
	if n != nil && n.fd < 0 && n.birth != st.Btime {
		n = nil // its inode is gone and the number is another's; that node stays without one
	}
	if n == nil {
		if len(t.byID) >= t.limit {
			unix.Close(fd)
			return nil, unix.ENFILE
		}
		t.last++
		n = &node{
			id: t.last, fd: -1, identity: key, format: st.Mode & unix.S_IFMT, birth: st.Btime,
			submount: key.mount != parent.identity.mount && st.Mode&unix.S_IFMT == unix.S_IFDIR,
		}
		t.byID[n.id] = n
		t.byIdentity[key] = n
	}
	n.lookups++
	n.uses++
	n.parent, n.name = parent.id, name
	t.adopt(n, fd)
	return n, 0
}

// lookedUp counts another look-up of a node in use, by a new name; false where the client forgot it
// meanwhile, and so has no number for it.
func (t *nodes) lookedUp(n, parent *node, name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.lookups == 0 {
		return false
	}
	n.lookups++
	n.parent, n.name = parent.id, name
	return true
}

// forget takes back count look-ups. The root stays.
func (t *nodes) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == rootID {
		return
	}
	n.lookups -= min(count, n.lookups)
	if n.lookups == 0 {
		t.drop(n)
	}
}

// drop takes a node out of the table.
func (t *nodes) drop(n *node) {
	n.lookups = 0
	delete(t.byID, n.id)
	if t.byIdentity[n.identity] == n {
		delete(t.byIdentity, n.identity)
	}
	t.closeIfGone(n)
}

// reset forgets everything but the root.
func (t *nodes) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, n := range t.byID {
		if id != rootID {
			t.drop(n)
		}
	}
}

// close forgets the root as well.
func (t *nodes) close() {
	t.reset()
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byID[rootID]; n != nil {
		t.drop(n)
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
