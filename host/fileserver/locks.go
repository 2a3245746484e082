package fileserver

import (
	"maps"
	"math"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// File locks are taken on the host, so that they hold between all who use a file: flock's on
// the open file itself, and those of ranges (POSIX and OFD) on an open file description for
// each of the client's owners, as the host's locks of a process would be the server's.

// A lockOwner is whom the client says a lock of a range belongs to: a process, or for OFD
// locks an open file.
type lockOwner struct {
	node  *node
	owner uint64
}

// A lockFile holds what one owner has locked of one file.
type lockFile struct {
	lockOwner
	fd  int
	pid uint32 // who asked for the first lock, by the client's numbers

	// Guarded by locks.
	uses int     // the table itself is one
	via  *handle // through which the first lock was asked for
}

type locks struct {
	mu      sync.Mutex
	byOwner map[lockOwner]*lockFile
	limit   int
	waits   waits
}

func newLocks(limits Limits) *locks {
	return &locks{
		byOwner: map[lockOwner]*lockFile{}, limit: limits.Handles,
		waits: waits{running: map[uint64]*wait{}, limit: limits.Waits},
	}
}

// A lockRequest is a fuse_lk_in.
type lockRequest struct {
	handle, owner uint64
	start, end    uint64
	kind          int16
	pid           uint32
	flags         uint32
}

func (c *call) lockRequest() (lockRequest, unix.Errno) {
	r := lockRequest{handle: c.u64(), owner: c.u64(), start: c.u64(), end: c.u64()}
	kind := c.u32()
	r.pid, r.flags = c.u32(), c.u32()
	c.skip(4)
	if c.short || kind > unix.F_UNLCK || r.start > r.end || r.end > math.MaxInt64 {
		return r, unix.EINVAL
	}
	r.kind = int16(kind)
	return r, 0
}

// span is the lock as the host's kernel wants to be told.
func (r *lockRequest) span() unix.Flock_t {
	lock := unix.Flock_t{Type: r.kind, Whence: unix.SEEK_SET, Start: int64(r.start)}
	if r.end < math.MaxInt64 { // a length of 0 is to the end of the file, however it grows
		lock.Len = int64(r.end-r.start) + 1
	}
	return lock
}

func (s *Server) setlk(c *call) unix.Errno  { return s.lock(c, false) }
func (s *Server) setlkw(c *call) unix.Errno { return s.lock(c, true) }

func (s *Server) lock(c *call, wait bool) unix.Errno {
	r, errno := c.lockRequest()
	if errno != 0 {
		return errno
	}
	h, errno := s.handle(c, r.handle)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	wait = wait && r.kind != unix.F_UNLCK
	if r.flags&lockFlock != 0 {
		return s.lockWhole(c, h, &r, wait)
	}
	f, errno := s.lockFileOf(h, &r, r.kind != unix.F_UNLCK)
	if f == nil {
		return errno
	}
	defer s.letLockGo(f)
	lock := r.span()
	if wait {
		return s.locks.waits.wait(c, func() error { return unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLKW, &lock) })
	}
	return errnoOf(unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &lock))
}

// lockWhole is flock(2).
func (s *Server) lockWhole(c *call, h *handle, r *lockRequest, wait bool) unix.Errno {
	how := map[int16]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[r.kind]
	if wait {
		return s.locks.waits.wait(c, func() error { return unix.Flock(h.fd, how) })
	}
	return errnoOf(unix.Flock(h.fd, how|unix.LOCK_NB))
}

// lockFileOf finds what the owner has locked of the file, and where there is nothing makes
// room for it if open is true. The caller calls letLockGo.
func (s *Server) lockFileOf(h *handle, r *lockRequest, open bool) (*lockFile, unix.Errno) {
	key := lockOwner{h.node, r.owner}
	if f := s.locks.find(key); f != nil || !open {
		return f, 0
	}
	fd, errno := s.openForLocks(h)
	if errno != 0 {
		return nil, errno
	}
	l := s.locks
	l.mu.Lock()
	f := l.byOwner[key]
	if f != nil || len(l.byOwner) >= l.limit {
		defer unix.Close(fd)
	}
	if f == nil && len(l.byOwner) >= l.limit {
		l.mu.Unlock()
		return nil, unix.ENOLCK
	}
	if f == nil {
		f = &lockFile{lockOwner: key, fd: fd, pid: r.pid, uses: 1, via: h}
		l.byOwner[key] = f
		s.nodes.again(h.node)
		if h.locked == nil {
			h.locked = map[*lockFile]struct{}{}
		}
		h.locked[f] = struct{}{}
	}
	f.uses++
	l.mu.Unlock()
	return f, 0
}

func (l *locks) find(key lockOwner) *lockFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.byOwner[key]
	if f != nil {
		f.uses++
	}
	return f
}

// openForLocks opens the file for reading and writing, as either kind of lock may be asked
// for later, or else as the client has opened it.
func (s *Server) openForLocks(h *handle) (int, unix.Errno) {
	if h.node.format == unix.S_IFREG && !s.export.ReadOnly {
		if fd, errno := s.reopen(h.node, unix.O_RDWR); errno == 0 {
			return fd, 0
		}
	}
	mode, err := unix.FcntlInt(uintptr(h.fd), unix.F_GETFL, 0)
	if err != nil {
		return -1, errnoOf(err)
	}
	return s.reopen(h.node, mode&unix.O_ACCMODE)
}

func (s *Server) letLockGo(f *lockFile) {
	s.locks.mu.Lock()
	f.uses--
	last := f.uses == 0
	s.locks.mu.Unlock()
	if last {
		unix.Close(f.fd)
		s.nodes.done(f.node)
	}
}

// unlock drops all that f holds, at once even if somebody waits for a lock with it.
func (s *Server) unlock(f *lockFile) {
	l := s.locks
	l.mu.Lock()
	there := l.byOwner[f.lockOwner] == f
	if there {
		delete(l.byOwner, f.lockOwner)
		delete(f.via.locked, f)
		f.via = nil
	}
	l.mu.Unlock()
	if !there {
		return
	}
	all := unix.Flock_t{Type: unix.F_UNLCK, Whence: unix.SEEK_SET}
	_ = unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &all) // closing does it as well
	s.letLockGo(f)
}

// unlockOwner drops what an owner has locked of a file: a process has closed the file.
func (s *Server) unlockOwner(n *node, owner uint64) {
	if f := s.locks.find(lockOwner{n, owner}); f != nil {
		s.unlock(f)
		s.letLockGo(f)
	}
}

// unlockHandle drops what was locked through an open file and is still held: OFD locks, as
// those of processes went with each one's close.
func (s *Server) unlockHandle(h *handle) {
	s.locks.mu.Lock()
	locked := slices.Collect(maps.Keys(h.locked))
	s.locks.mu.Unlock()
	for _, f := range locked {
		s.unlock(f)
	}
}

// unlockAll ends all waits and drops all locks.
func (s *Server) unlockAll() {
	s.locks.waits.cancelAll(func(*wait) bool { return true })
	s.locks.mu.Lock()
	all := slices.Collect(maps.Values(s.locks.byOwner))
	s.locks.mu.Unlock()
	for _, f := range all {
		s.unlock(f)
	}
}

func (s *Server) getlk(c *call) unix.Errno {
	r, errno := c.lockRequest()
	if errno != 0 {
		return errno
	}
	h, errno := s.handle(c, r.handle)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	fd := h.fd // which holds no range
	own := s.locks.find(lockOwner{h.node, r.owner})
	if own != nil {
		defer s.letLockGo(own)
		fd = own.fd
	}
	lock := r.span()
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock); err != nil {
		return errnoOf(err)
	}
	start, end, pid := r.start, r.end, uint32(0)
	if lock.Type != unix.F_UNLCK {
		start, end = uint64(lock.Start), math.MaxInt64
		if lock.Len != 0 {
			end = start + uint64(lock.Len) - 1
		}
		pid = s.holder(h.node, own, lock)
	}
	c.put64(start)
	c.put64(end)
	c.put32(uint32(lock.Type))
	c.put32(pid)
	return 0
}

// maxAsked bounds how many owners are asked whether a lock is theirs.
const maxAsked = 64

// holder is the client's process that holds a lock; 0 where that is none of its own. Who
// holds a lock is the one in whose way the lock is not.
func (s *Server) holder(n *node, not *lockFile, lock unix.Flock_t) uint32 {
	s.locks.mu.Lock()
	defer s.locks.mu.Unlock()
	asked := 0
	for key, f := range s.locks.byOwner {
		if key.node != n || f == not {
			continue
		}
		if asked++; asked > maxAsked {
			break
		}
		probe := lock
		probe.Type, probe.Whence, probe.Pid = unix.F_WRLCK, unix.SEEK_SET, 0
		if err := unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_GETLK, &probe); err != nil {
			continue
		}
		if probe.Type == unix.F_UNLCK || probe.Start != lock.Start || probe.Len != lock.Len {
			return f.pid
		}
	}
	return 0
}

// flush is the close of one of perhaps several descriptors of an open file. What the host
// has to say of the writes (a quota on a network file system) it says at a close.
func (s *Server) flush(c *call) unix.Errno {
	id := c.u64()
	c.skip(8)
	owner := c.u64()
	if c.short {
		return unix.EINVAL
	}
	h, errno := s.handle(c, id)
	if errno != 0 {
		return errno
	}
	defer s.letGo(h)
	s.unlockOwner(h.node, owner)
	twin, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return errnoOf(err)
	}
	return errnoOf(unix.Close(twin))
}
