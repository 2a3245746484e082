package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
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
	calls *listener
	// slot is the descriptor's number in the vmm, which never closes it.
	slot  int
	empty *os.File // what the slot is
	// ownFDs is /proc/self/fd. Later, /proc is what a container has there.
	ownFDs *os.File
	ownTID int // of our thread that is under the filter
	vmm    atomic.Pointer[target]
	// fixed is set for a QEMU that needs none of this.
	fixed atomic.Bool
	held  map[uint32]*os.File // special files by the thread of the vmm; of serve alone
	// forked is closed when the thread under the filter has forked the vmm, or failed:
	// until then it uses what serve closes at its end.
	forked chan struct{}
	ended  chan struct{} // closed when serve has ended
}

// target is the vmm once it runs.
type target struct {
	hostPID int
	pidfd   int
}

// fixedSince is the first major version of QEMU that needs none of this.
const fixedSince = 10

// newSpecialFiles opens what is in the slot, for the vmm to inherit.
func newSpecialFiles() (*specialFiles, error) {
	fds, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	empty, err := unix.MemfdCreate("husk-special-file", unix.MFD_CLOEXEC)
	if err != nil {
		fds.Close()
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return &specialFiles{ownFDs: fds, empty: os.NewFile(uintptr(empty), "empty"), held: map[uint32]*os.File{}, forked: make(chan struct{}), ended: make(chan struct{})}, nil
}

// lendSpecialFiles gives the vmm of a VM with a share the slot. Without a share there
// is none.
func lendSpecialFiles(cfg hypervisor.Config, inherit func(*os.File) int) (*specialFiles, error) {
	if cfg.ShareDir == "" {
		return nil, nil
	}
	s, err := newSpecialFiles()
	if err != nil {
		return nil, fmt.Errorf("watch over special files: %w", err)
	}
	s.slot = inherit(s.empty)
	return s, nil
}

// specialFilesFilter picks the calls described above.
func specialFilesFilter(slot int) []bpf.Instruction {
	const (
		offNumber, offArch, offArgs = 0, 4, 16
		argSize                     = 8
	)
	load := func(off uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: off, Size: 4} }
	return []bpf.Instruction{
		load(offArch),
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 10},
		load(offNumber),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_OPENAT, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_CLOSE, SkipTrue: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_CHMOD, SkipTrue: 5, SkipFalse: 6},
		// openat: what it opens only to name it, and that is no directory.
		load(offArgs + 2*argSize),
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: unix.O_PATH | unix.O_DIRECTORY},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.O_PATH, SkipTrue: 2, SkipFalse: 3},
		// close: of the slot.
		load(offArgs),
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(slot), SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	}
}

// watch puts the calling thread, which forks the vmm next and then stays, under the
// filter. With an error the vmm runs without.
func (s *specialFiles) watch() error {
	calls, err := listen(specialFilesFilter(s.slot))
	if err != nil {
		s.close()
		close(s.ended)
		return err
	}
	s.calls, s.ownTID = calls, unix.Gettid()
	go s.serve()
	return nil
}

// started names the vmm; pidfd is copied. It is for the thread that has called watch
// successfully.
func (s *specialFiles) started(hostPID, pidfd int) error {
	own, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.vmm.Store(&target{hostPID: hostPID, pidfd: own})
	return nil
}

// serve ends when the vmm and the thread that forked it have: nobody else is under
// the filter. What it holds it lets go of.
func (s *specialFiles) serve() {
	for {
		n, err := s.calls.receive()
		if err != nil {
			break
		}
		s.handle(n)
	}
	s.calls.close()
	<-s.forked
	s.close()
	defer close(s.ended)
	if t := s.vmm.Load(); t != nil {
		unix.Close(t.pidfd)
	}
}

func (s *specialFiles) close() {
	s.ownFDs.Close()
	s.empty.Close()
	for _, node := range s.held {
		node.Close()
	}
}

func (s *specialFiles) handle(n notification) {
	t := s.vmm.Load()
	if t == nil || int(n.tid) == s.ownTID || s.fixed.Load() {
		s.calls.proceed(n)
		return
	}
	node := s.held[n.tid]
	switch {
	case n.nr == unix.SYS_OPENAT:
		s.open(t, n)
	case n.nr == unix.SYS_CHMOD && node != nil:
		s.calls.answer(n, 0, s.chmod(node, uint32(n.args[1])))
	case n.nr == unix.SYS_CLOSE:
		if node != nil {
			node.Close()
			delete(s.held, n.tid)
		}
		s.calls.answer(n, 0, 0)
	default:
		s.calls.proceed(n)
	}
}

func (s *specialFiles) open(t *target, n notification) {
	node, err := t.specialFile(int(int32(n.args[0])), n.args[1])
	if err != nil || node == nil {
		s.calls.proceed(n) // it fails there as well, or is nothing special
		return
	}
	if last := s.held[n.tid]; last != nil {
		last.Close() // the answer was lost to a signal, and the thread asks again
	}
	s.held[n.tid] = node
	s.calls.answer(n, s.slot, 0)
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
func (t *target) specialFile(dirFD int, nameAt uint64) (*os.File, error) {
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
	if err := unix.Fstat(node, &st); err != nil || !special(st) {
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
func (t *target) readName(at uint64) (string, error) {
	const maxName = 256 // with the 0 that ends it
	buf := make([]byte, maxName)
	local := []unix.Iovec{{Base: &buf[0], Len: maxName}}
	// Split where the next page begins, which need not be there.
	first := min(maxName, int(uint64(os.Getpagesize())-at%uint64(os.Getpagesize())))
	remote := []unix.RemoteIovec{{Base: uintptr(at), Len: first}}
	if first < maxName {
		remote = append(remote, unix.RemoteIovec{Base: uintptr(at) + uintptr(first), Len: maxName - first})
	}
	n, err := unix.ProcessVMReadv(t.hostPID, local, remote, 0)
	if err != nil {
		return "", err
	}
	end := bytes.IndexByte(buf[:n], 0)
	if end < 0 {
		return "", unix.ENAMETOOLONG
	}
	name := string(buf[:end])
	if name == "" || name == "." || name == ".." || bytes.IndexByte(buf[:end], '/') >= 0 {
		return "", &fs.PathError{Op: "open", Path: name, Err: errors.New("not one name")}
	}
	return name, nil
}
