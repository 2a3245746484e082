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

// specialFiles makes it possible for a QEMU before version 10 to make and chmod unix sockets,
// fifos and device nodes in the share.
//
// QEMU's 9p server sets a file's mode in these steps:
//
//	fd = openat(dir, name, O_PATH|O_NOFOLLOW|...)
//	fstat(fd), and ENXIO unless that is a file or a directory
//	chmod("/proc/self/fd/N", mode), close(fd)
//
// The check came with the fix of CVE-2023-2861, which was about opening devices. O_PATH opens
// nothing, and QEMU 10 does not check here. Older versions fail each mknod, because that sets
// the mode too, and so each bind of a unix socket.
//
// So the vmm's filter sends these calls to this process. For a special file openat returns the
// slot, a descriptor of an empty file in memory, and this process does the thread's chmod on
// the special file instead. Opening a special file stays impossible. A guest that has taken
// QEMU over gains only chmod of files that it could chmod anyway.
type specialFiles struct {
	// slot is the number of the descriptor in the vmm, which never closes it.
	slot  int
	empty *os.File // the file that the slot is open on
	// ownFDs is this process's /proc/self/fd, opened early: later the container can put
	// something else on /proc.
	ownFDs *os.File
	// owns says for which owners the vmm may change special files; nil: for all.
	owns func(uid, gid uint32) bool
	// fixed is set for a QEMU that needs none of this.
	fixed atomic.Bool
	held  map[uint32]*os.File // special files by the vmm's thread; used by the watcher only
}

// maxHeld bounds the special files that are held open. QEMU's 9p server has 64 threads, each of
// which works on one. A vmm that has been taken over could make threads without end, and leave
// one file open for each until this process has no descriptors left.
const maxHeld = 256

// fixedSince is the first major version of QEMU that needs none of this.
const fixedSince = 10

// newSpecialFiles opens the file of the slot, and makes the vmm inherit it.
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

// watched returns the calls described above.
func (s *specialFiles) watched() watch {
	return watch{
		// O_PATH without O_DIRECTORY: a call that opens something only to name it.
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

// handle answers a call if it is one for a special file. It returns false if it has not
// answered.
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
		return false // the vmm's own call fails as well, or it is no special file
	}
	if last := s.held[n.tid]; last != nil {
		last.Close() // a signal has interrupted the answer, and the thread asks again
	} else if len(s.held) >= maxHeld {
		node.Close()
		return false // then the vmm's own call fails, as without this file
	}
	s.held[n.tid] = node
	calls.answer(n, s.slot, 0)
	return true
}

// chmod goes through /proc, as QEMU does, because fchmod refuses a descriptor opened with
// O_PATH.
func (s *specialFiles) chmod(node *os.File, mode uint32) syscall.Errno {
	err := unix.Fchmodat(int(s.ownFDs.Fd()), strconv.Itoa(int(node.Fd())), mode&0o7777, 0)
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = unix.EIO
	}
	return errno
}

// specialFile opens, with O_PATH, the file that the vmm names by a descriptor of a directory
// and the address of a name. It returns nil if that is a regular file, a directory or a
// symbolic link.
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

// readName reads one path component from the vmm's memory.
func (t target) readName(at uint64) (string, error) {
	const maxName = 256 // with the terminating zero byte
	name, err := t.readString(at, maxName)
	if err != nil {
		return "", err
	}
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return "", &fs.PathError{Op: "open", Path: name, Err: errors.New("not one name")}
	}
	return name, nil
}
