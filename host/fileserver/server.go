// Package fileserver serves a directory over the FUSE protocol, version 7.31 and later: the
// semantics only. Whoever has messages, from a virtio queue or from /dev/fuse, hands them to
// Handle and carries the answers away.
//
// The client is taken to be hostile. It names files by number, and by single names below
// such a number; each number is a descriptor that the server holds, and no path is ever
// resolved from the root. Who may do what inside is the client's kernel's to decide
// (default_permissions), as it knows its processes' groups and capabilities and the server
// does not; the server bounds what all of them together can reach.
//
// The process should have the capabilities CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP,
// SETGID and SETUID, and MKNOD for devices; it must not have SYS_RESOURCE, which passes
// over quotas. With none it serves what its own user may do.
package fileserver

import (
	"errors"
	"fmt"
	"os/signal"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A Server answers the requests of one client.
type Server struct {
	export  Export
	uids    idMap
	gids    idMap
	proc    int // an O_PATH descriptor of this process's /proc/self/fd
	nodes   *nodes
	handles *handles
	locks   *locks
	threads *threads
	session atomic.Pointer[session]
	closed  atomic.Bool
	running atomic.Int64 // calls
	last    sync.Once
	syncing sync.Mutex
	xattrAt bool // the kernel has system calls on extended attributes that take a directory
}

// New returns a server of export. Close ends it.
func New(export Export) (*Server, error) {
	// A limit to the size of this process's files is an error of a write, and not its end.
	signal.Ignore(unix.SIGXFSZ)
	export.Limits = export.Limits.withDefaults()
	if err := prepareWaking(); err != nil {
		return nil, err
	}
	proc, err := openDescriptors(export.Proc)
	if err != nil {
		return nil, err
	}
	root, err := unix.FcntlInt(uintptr(export.Root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(proc)
		return nil, fmt.Errorf("copy the descriptor of the export's root: %w", err)
	}
	var st unix.Statx_t
	if errno := statx(root, &st); errno != 0 {
		err = fmt.Errorf("look at the export's root: %w", errno)
	} else if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = errors.New("the export's root is not a directory")
	}
	if err != nil {
		unix.Close(root)
		unix.Close(proc)
		return nil, err
	}
	threads, err := newThreads(proc, export.Limits.Threads)
	if err != nil {
		unix.Close(root)
		unix.Close(proc)
		return nil, err
	}
	return &Server{
		export: export, uids: export.UIDs, gids: export.GIDs, proc: proc,
		nodes:   newNodes(&node{fd: root, identity: identityOf(&st), format: unix.S_IFDIR}, export.Limits),
		handles: newHandles(export.Limits.Handles),
		locks:   newLocks(export.Limits), threads: threads, xattrAt: hasXattrAt(proc),
	}, nil
}

// openDescriptors opens the directory of this process's descriptors below procfs.
func openDescriptors(procfs int) (int, error) {
	dir, name := procfs, "self/fd"
	if procfs == 0 {
		dir, name = unix.AT_FDCWD, "/proc/self/fd"
	}
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the directory of own descriptors: %w", err)
	}
	return fd, nil
}

// Close forgets the client and gives back every descriptor. A Handle that is under way
// finishes; later ones answer ENODEV.
func (s *Server) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.reset()
	s.nodes.close()
	s.threads.close()
	if s.running.Load() == 0 {
		s.letProcGo()
	}
	return nil
}

// letProcGo is the last thing: calls that are under way use the descriptor.
func (s *Server) letProcGo() { s.last.Do(func() { unix.Close(s.proc) }) }

// reset ends a session: all open files are closed, all inodes forgotten.
func (s *Server) reset() {
	s.session.Store(nil)
	s.unlockAll()
	s.closeAll()
	s.nodes.reset()
}

// An operation is how one kind of request is answered.
type operation struct {
	handle func(*Server, *call) unix.Errno
	answer int  // bytes that the client must have room for behind the header
	silent bool // nothing is answered
	change bool // not with a read-only export
}

// Handle answers one FUSE request. Reply is the room that the client offers for the answer;
// Handle returns how many bytes of it the answer takes, 0 where none is due (FORGET,
// INTERRUPT) or none can be given (no header, no room for one). It may be called by many
// goroutines at once. A call can take as long as the host's file system does; one that waits
// for a lock ends early by INTERRUPT, Interrupt, Close or DESTROY.
func (s *Server) Handle(request, reply []byte) int {
	if len(request) < inHeaderSize {
		return 0
	}
	s.running.Add(1)
	c := calls.Get().(*call) //nolint:errcheck // the pool holds nothing else
	defer func() {
		*c = call{}
		calls.Put(c)
		if s.running.Add(-1) == 0 && s.closed.Load() {
			s.letProcGo()
		}
	}()
	whole := c.parse(request)
	c.server = s
	var op operation
	if c.opcode < operationCount {
		op = operations[c.opcode]
	}
	if op.silent {
		if whole && s.session.Load() != nil && !s.closed.Load() {
			op.handle(s, c)
		}
		return 0
	}
	if len(reply) < outHeaderSize {
		return 0
	}
	c.out = reply[outHeaderSize:outHeaderSize]
	errno := unix.EIO
	if whole {
		errno = s.perform(c, &op)
	}
	if errno != 0 {
		c.out = c.out[:0]
	}
	order.PutUint32(reply, uint32(outHeaderSize+len(c.out)))
	order.PutUint32(reply[4:], uint32(-int32(errno)))
	order.PutUint64(reply[8:], c.unique)
	return outHeaderSize + len(c.out)
}

func (s *Server) perform(c *call, op *operation) unix.Errno {
	switch {
	case s.closed.Load():
		return unix.ENODEV
	case op.handle == nil:
		return unix.ENOSYS
	case s.session.Load() == nil && c.opcode != opInit:
		return unix.EIO
	case cap(c.out) < op.answer:
		return unix.EIO
	case op.change && s.export.ReadOnly:
		return unix.EROFS
	}
	errno := op.handle(s, c)
	if errno == 0 && (c.short || c.full) {
		return unix.EIO
	}
	return errno
}
