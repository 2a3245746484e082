package fileserver

import (
	"golang.org/x/sys/unix"
)

// A descriptor that is closed to make room for others leaves the node with the name by which
// it was looked up last. Used again, the name is looked up again, and what is found must be
// the same inode: number, mount and time of birth. If it is not, as somebody has renamed it,
// the answer is ESTALE, on which the client's kernel looks the whole path up once more.
// Directories are closed last, as a process may be in one, for which there is no path to
// look up.

// maxReopened is how deep below an open directory a closed node is found again.
const maxReopened = 512

// descriptors are the open nodes, by when they were used last; the root is not among them.
type descriptors struct {
	files, directories queue
	count, limit       int
	evicted            bool // there was ever one that was closed for want of room
}

// A queue lists nodes from the one used last.
type queue struct{ newest, oldest *node }

func (d *descriptors) queueOf(n *node) *queue {
	if n.format == unix.S_IFDIR {
		return &d.directories
	}
	return &d.files
}

func (q *queue) push(n *node) {
	n.newer, n.older = nil, q.newest
	if q.newest != nil {
		q.newest.newer = n
	} else {
		q.oldest = n
	}
	q.newest = n
}

func (q *queue) unlink(n *node) {
	if n.newer != nil {
		n.newer.older = n.older
	} else {
		q.newest = n.older
	}
	if n.older != nil {
		n.older.newer = n.newer
	} else {
		q.oldest = n.newer
	}
	n.newer, n.older = nil, nil
}

func (d *descriptors) add(n *node) {
	d.queueOf(n).push(n)
	d.count++
}

func (d *descriptors) remove(n *node) {
	if n.id == rootID {
		return
	}
	d.queueOf(n).unlink(n)
	d.count--
}

func (d *descriptors) touch(n *node) {
	q := d.queueOf(n)
	if n.id == rootID || q.newest == n {
		return
	}
	q.unlink(n)
	q.push(n)
}

// maxBusy is how many nodes in use are passed over in search of one that is not.
const maxBusy = 64

// shrink closes nodes until there are no more than the limit, or all that were looked at are
// in use: their number is bounded by that of handles and calls.
func (d *descriptors) shrink() {
	for _, q := range []*queue{&d.files, &d.directories} {
		busy := 0
		for n := q.oldest; n != nil && d.count > d.limit && busy < maxBusy; {
			next := n.newer
			q.unlink(n)
			if n.uses > 0 {
				busy++
				q.push(n)
			} else {
				d.count--
				d.evicted = true
				unix.Close(n.fd)
				n.fd = -1
			}
			n = next
		}
		if busy == maxBusy { // there may be files behind them; directories wait
			return
		}
	}
}

// adopt gives fd to a node in use, or closes it where the node has one.
func (t *nodes) adopt(n *node, fd int) {
	if n.fd >= 0 {
		unix.Close(fd)
		t.open.touch(n)
		return
	}
	n.fd = fd
	t.open.add(n)
	t.open.shrink()
}

// findAgain opens a node in use whose descriptor was closed.
func (t *nodes) findAgain(n *node, parent uint64, name string, depth int) unix.Errno {
	if depth == 0 { // the names go round in a circle
		return unix.ESTALE
	}
	dir, errno := t.useBelow(parent, depth-1)
	if errno != 0 {
		return unix.ESTALE
	}
	defer t.done(dir)
	fd, errno := find(dir, name)
	if errno == unix.ENOENT || errno == unix.ENOTDIR {
		return unix.ESTALE
	}
	if errno != 0 {
		return errno
	}
	var st unix.Statx_t
	if errno := statx(fd, &st); errno != 0 {
		unix.Close(fd)
		return errno
	}
	if identityOf(&st) != n.identity || st.Btime != n.birth || st.Mode&unix.S_IFMT != n.format {
		unix.Close(fd)
		return unix.ESTALE
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.adopt(n, fd)
	return 0
}

// renamed notes that the client itself has moved something, so that its node, if closed,
// is found by the new name.
func (t *nodes) renamed(dir *node, name string) {
	t.mu.Lock()
	evicted := t.open.evicted
	t.mu.Unlock()
	if !evicted {
		return
	}
	fd, errno := find(dir, name)
	if errno != 0 {
		return
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if errno := statx(fd, &st); errno != 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byIdentity[identityOf(&st)]; n != nil {
		n.parent, n.name = dir.id, name
	}
}
