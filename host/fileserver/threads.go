package fileserver

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A credential is whose a system call is to the host's file system.
type credential struct {
	uid, gid uint32
	umask    uint32
	// stripped leaves out CAP_FSETID, so that set-user-id and set-group-id bits go where the
	// host's rules say so.
	stripped bool
}

// threads runs system calls that depend on what a thread of the system has for itself: user,
// group, umask, capabilities, working directory. A thread keeps what it was given last, so
// that one user's calls in a row cost nothing more.
type threads struct {
	slots chan struct{} // one is taken for each thread
	idle  chan *thread
	ended chan struct{}
	proc  int
	own   credential
}

type thread struct {
	jobs chan job
	now  credential
	base [2]unix.CapUserData
}

type job struct {
	as     credential
	do     func() unix.Errno
	result chan unix.Errno
}

// newThreads checks that a thread can have what it needs.
func newThreads(proc, limit int) (*threads, error) {
	t := &threads{
		slots: make(chan struct{}, limit), idle: make(chan *thread, limit), ended: make(chan struct{}), proc: proc,
		own: credential{uid: uint32(unix.Geteuid()), gid: uint32(unix.Getegid())},
	}
	t.slots <- struct{}{}
	first, err := t.start()
	if err != nil {
		return nil, err
	}
	t.idle <- first
	return t, nil
}

func (t *threads) close() { close(t.ended) }

// run calls do as whom it is told, and with /proc/self/fd as the working directory.
func (t *threads) run(as credential, do func() unix.Errno) unix.Errno {
	th, errno := t.get()
	if errno != 0 {
		return errno
	}
	j := job{as: as, do: do, result: make(chan unix.Errno, 1)}
	select {
	case th.jobs <- j:
	case <-t.ended:
		return unix.ENODEV
	}
	errno = <-j.result
	t.idle <- th
	return errno
}

// get waits for a thread that nobody uses, or starts one.
func (t *threads) get() (*thread, unix.Errno) {
	select {
	case th := <-t.idle:
		return th, 0
	default:
	}
	select {
	case th := <-t.idle:
		return th, 0
	case t.slots <- struct{}{}:
		th, err := t.start()
		if err != nil {
			<-t.slots
			return nil, unix.EAGAIN
		}
		return th, 0
	case <-t.ended:
		return nil, unix.ENODEV
	}
}

func (t *threads) start() (*thread, error) {
	th := &thread{jobs: make(chan job), now: t.own}
	ready := make(chan error, 1)
	go func() {
		// Not unlocked: the thread ends with the goroutine, and nobody inherits what it has.
		runtime.LockOSThread()
		err := th.prepare(t.proc)
		ready <- err
		if err != nil {
			return
		}
		for {
			select {
			case j := <-th.jobs:
				errno := th.become(j.as)
				if errno == 0 {
					errno = j.do()
				}
				j.result <- errno
			case <-t.ended:
				return
			}
		}
	}()
	return th, <-ready
}

// prepare gives the thread a umask and a working directory of its own.
func (th *thread) prepare(proc int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("give a thread a umask of its own: %w", err)
	}
	if err := unix.Fchdir(proc); err != nil {
		return fmt.Errorf("enter the directory of own descriptors: %w", err)
	}
	unix.Umask(0)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &th.base[0]); err != nil {
		return fmt.Errorf("read a thread's capabilities: %w", err)
	}
	if th.has(unix.CAP_SETGID) {
		// The groups of whoever started the server are nobody's here. Package unix would
		// set them for all threads.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			return fmt.Errorf("leave a thread's groups: %w", errno)
		}
	}
	return nil
}

func (th *thread) has(capability uint) bool {
	return th.base[capability/32].Effective&(1<<(capability%32)) != 0
}

// become takes on a credential. The kernel takes the capabilities over files from a user
// that is not root; they are taken back, see the package's comment for why.
func (th *thread) become(as credential) unix.Errno {
	if as == th.now {
		return 0
	}
	if as.umask != th.now.umask {
		unix.Umask(int(as.umask & 0o777))
		th.now.umask = as.umask
	}
	if as.uid == th.now.uid && as.gid == th.now.gid && as.stripped == th.now.stripped {
		return 0
	}
	const ask = -1 // no id: changes nothing, answers with what is
	// Neither call says whether the id was taken.
	_, _ = unix.SetfsgidRetGid(int(as.gid))
	_, _ = unix.SetfsuidRetUid(int(as.uid))
	uid, _ := unix.SetfsuidRetUid(ask)
	gid, _ := unix.SetfsgidRetGid(ask)
	th.now.uid, th.now.gid = uint32(uid), uint32(gid)
	want := th.base
	if as.stripped {
		want[0].Effective &^= 1 << unix.CAP_FSETID
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	_, _, errno := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&want[0])), 0)
	if errno != 0 {
		return errno
	}
	th.now.stripped = as.stripped
	if th.now.uid != as.uid || th.now.gid != as.gid {
		return unix.EPERM
	}
	return 0
}
