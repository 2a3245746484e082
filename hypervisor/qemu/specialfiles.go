package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/detached"
)

// specialFiles lets QEMU 7.2 to 9.1 make and chmod unix sockets, fifos and device
// nodes in the share.
//
// QEMU's 9p server sets a file's mode as
//
//	fd = openat(dir, name, O_PATH|O_NOFOLLOW|...)
//	fstat(fd), and ENXIO unless that is a file or a directory
//	chmod("/proc/self/fd/N", mode), close(fd)
//
// The check came with the cure of CVE-2023-2861, which was about opening devices.
// With O_PATH nothing is opened, and QEMU 10 leaves it out here; until then each mknod
// fails, since that sets the mode too, and with it every bind of a unix socket.
//
// So these few calls of the vmm come here first. What openat returns for a special
// file is the slot, a descriptor of an empty file in memory, and the thread's chmod
// is done here to the special file instead. Nobody may open one any more than before.
// A guest that has taken QEMU over gains nothing but chmod of what it could chmod.
type specialFiles struct {
	// slot is the descriptor's number in the vmm, which never closes it.
	slot  int
	empty *os.File // what the slot is
	// ownFDs is /proc/self/fd, and leads nowhere else. Later, /proc is what a container
	// has there.
	ownFDs *os.File
	// owns says whose special files the vmm may ask to be changed; nil: anybody's.
	owns func(uid, gid uint32) bool
	// fixed is set for a QEMU that needs none of this.
	fixed atomic.Bool
	held  map[uint32]*os.File // special files by the thread of the vmm; of the watcher alone
}

// maxHeld bounds how many special files are held: QEMU's 9p server works on as many at
// once as it has threads, which are 64. A vmm that has been taken over makes threads
// without end, each of which leaves one behind, until this process has no descriptor
// left.
const maxHeld = 256

// fixedSince is the first major version of QEMU that needs none of this.
const fixedSince = 10

// newSpecialFiles opens what is in the slot, for the vmm to inherit.
func newSpecialFiles(inherit func(*os.File) int) (*specialFiles, error) {
	fds, err := detached.Open("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	empty, err := unix.MemfdCreate("husk-special-file", unix.MFD_CLOEXEC)
	if err != nil {
		fds.Close()
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	s := &specialFiles{ownFDs: fds, empty: os.NewFile(uintptr(empty), "empty"), held: map[uint32]*os.File{}}
	s.slot = inherit(s.empty)
	return s, nil
}

// watched picks the calls described above.
func (s *specialFiles) watched() watch {
	return watch{
		// What it opens only to name it, and that is no directory.
		"openat": {{{2, unix.O_PATH | unix.O_DIRECTORY, unix.O_PATH}}},
		"close":  {{{0, allBits, uint32(s.slot)}}},
		"chmod":  {nil},
	}
}

func (s *specialFiles) close() {
	s.ownFDs.Close()
	s.empty.Close()
	for _, node := range s.held {
		node.Close()
	}
}

// handle reports whether it has answered.
func (s *specialFiles) handle(calls *listener, t target, n notification) bool {
	if s.fixed.Load() {
		return false
	}
	node := s.held[n.tid]
	switch {
	case n.nr == unix.SYS_OPENAT:
		return s.open(calls, t, n)
	case n.nr == unix.SYS_CHMOD && node != nil:
		calls.answer(n, 0, s.chmod(node, uint32(n.args[1])))
	case n.nr == unix.SYS_CLOSE:
		if node != nil {
			node.Close()
			delete(s.held, n.tid)
		}
		calls.answer(n, 0, 0)
	default:
		return false
	}
	return true
}

func (s *specialFiles) open(calls *listener, t target, n notification) bool {
	node, err := t.specialFile(int(int32(n.args[0])), n.args[1], s.owns)
	if err != nil || node == nil {
		return false // it fails there as well, or is nothing special
	}
	if last := s.held[n.tid]; last != nil {
		last.Close() // the answer was lost to a signal, and the thread asks again
	} else if len(s.held) >= maxHeld {
		node.Close()
		return false // then it fails there, as without all this
	}
	s.held[n.tid] = node
	calls.answer(n, s.slot, 0)
	return true
}

// chmod goes by /proc, as QEMU does: fchmod refuses what is open with O_PATH.
func (s *specialFiles) chmod(node *os.File, mode uint32) syscall.Errno {
	err := unix.Fchmodat(int(s.ownFDs.Fd()), strconv.Itoa(int(node.Fd())), mode&0o7777, 0)
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = unix.EIO
	}
	return errno
}

// specialFile opens (O_PATH) what the vmm names by its own descriptor of a
// directory and the address of a name; nil if that is a file, directory or symlink.
func (t target) specialFile(dirFD int, nameAt uint64, owns func(uid, gid uint32) bool) (*os.File, error) {
	name, err := t.readName(nameAt)
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdGetfd(t.pidfd, dirFD, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), "directory")
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || !special(st) {
		return nil, err
	}
	node, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(node), name)
	if err := unix.Fstat(node, &st); err != nil || !special(st) || owns != nil && !owns(st.Uid, st.Gid) {
		f.Close()
		return nil, err
	}
	return f, nil
}

func special(st unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK, unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK:
		return true
	}
	return false
}

// readName reads one component of a path.
func (t target) readName(at uint64) (string, error) {
	const maxName = 256 // with the 0 that ends it
	name, err := t.readString(at, maxName)
	if err != nil {
		return "", err
	}
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return "", &fs.PathError{Op: "open", Path: name, Err: errors.New("not one name")}
	}
	return name, nil
}
