package fileserver

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wakeSignal makes a thread that waits for a lock look up. It is a real-time signal that
// nobody else uses; package runtime handles it by doing nothing.
const wakeSignal = unix.Signal(37)

// prepareWaking takes SA_RESTART from the signal, which package runtime sets on all: with it
// the kernel would go on waiting for the lock.
var prepareWaking = sync.OnceValue(func() error {
	const restart = 0x10000000
	var action struct {
		handler  uintptr
		flags    uint64
		restorer uintptr
		mask     uint64
	}
	call := func(set, get unsafe.Pointer) unix.Errno {
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(wakeSignal), uintptr(set), uintptr(get), 8, 0, 0)
		return errno
	}
	if errno := call(nil, unsafe.Pointer(&action)); errno != 0 {
		return fmt.Errorf("read the handling of signal %d: %w", wakeSignal, errno)
	}
	if action.handler <= 1 { // SIG_DFL, SIG_IGN
		return fmt.Errorf("signal %d is not handled", wakeSignal)
	}
	action.flags &^= restart
	if errno := call(unsafe.Pointer(&action), nil); errno != 0 {
		return fmt.Errorf("change the handling of signal %d: %w", wakeSignal, errno)
	}
	return nil
})

// A wait is a request that waits for a lock, in a thread of the system.
type wait struct {
	pid  uint32
	over chan struct{}

	mu        sync.Mutex
	tid       int // 0 before and after
	cancelled bool
}

type waits struct {
	mu      sync.Mutex
	running map[uint64]*wait
	limit   int
	// early are interrupts that came before the request they are for, or have none.
	early []uint64
}

// maxEarly is how many interrupts are remembered.
const maxEarly = 64

// wait calls do, a system call that waits, again and again until it is done or cancelled.
func (w *waits) wait(c *call, do func() error) unix.Errno {
	this := &wait{pid: c.pid, over: make(chan struct{})}
	if errno := w.add(c.unique, this); errno != 0 {
		return errno
	}
	defer w.remove(c.unique, this)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	this.at(unix.Gettid())
	defer this.at(0)
	for !this.isCancelled() {
		if err := do(); err != unix.EINTR { //nolint:errorlint // do returns the number itself
			return errnoOf(err)
		}
	}
	return unix.EINTR
}

func (w *waits) add(unique uint64, this *wait) unix.Errno {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.early, unique); i >= 0 {
		w.early = slices.Delete(w.early, i, i+1)
		return unix.EINTR
	}
	if len(w.running) >= w.limit {
		return unix.ENOLCK
	}
	if w.running[unique] != nil {
		return unix.EINVAL // no client that is well asks twice at a time by one number
	}
	w.running[unique] = this
	return 0
}

func (w *waits) remove(unique uint64, this *wait) {
	w.mu.Lock()
	delete(w.running, unique)
	w.mu.Unlock()
	close(this.over)
}

func (w *wait) at(tid int) {
	w.mu.Lock()
	w.tid = tid
	w.mu.Unlock()
}

func (w *wait) isCancelled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cancelled
}

// cancel ends the wait. A signal that comes just before the thread waits is lost: it is sent
// until the wait is over.
func (w *wait) cancel() {
	w.mu.Lock()
	already := w.cancelled
	w.cancelled = true
	w.mu.Unlock()
	if already {
		return
	}
	go func() {
		pid := unix.Getpid()
		for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
			w.mu.Lock()
			if w.tid != 0 { // the thread cannot go elsewhere while the lock is held
				_ = unix.Tgkill(pid, w.tid, wakeSignal)
			}
			w.mu.Unlock()
			select {
			case <-w.over:
				return
			case <-time.After(pause):
			}
		}
	}()
}

// cancelAll ends the waits that which chooses.
func (w *waits) cancelAll(which func(*wait) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, this := range w.running {
		if which(this) {
			this.cancel()
		}
	}
}

// interrupt is INTERRUPT: the client no longer waits for a request.
func (s *Server) interrupt(c *call) unix.Errno {
	unique := c.u64()
	if c.short {
		return unix.EINVAL
	}
	w := &s.locks.waits
	w.mu.Lock()
	defer w.mu.Unlock()
	if this := w.running[unique]; this != nil {
		this.cancel()
		return 0
	}
	if len(w.early) == maxEarly {
		w.early = slices.Delete(w.early, 0, 1)
	}
	w.early = append(w.early, unique)
	return 0
}

// Interrupt ends the waits for locks of one of the client's processes with EINTR. It is for
// clients that do not send INTERRUPT, as Linux over virtio-fs: there a process that waits
// cannot be killed before it has its lock.
func (s *Server) Interrupt(pid uint32) {
	s.locks.waits.cancelAll(func(w *wait) bool { return w.pid == pid })
}
