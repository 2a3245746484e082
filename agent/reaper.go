package main

import (
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// reaper reaps the orphans that PID 1 inherits. It leaves the agent's own children to the code
// that has started them, whose Wait needs the exit status.
type reaper struct {
	// starting is read-locked while a process is being started, so that the reaper sees no
	// child of the agent before the child is in own.
	starting sync.RWMutex

	mu  sync.Mutex
	own map[int]struct{}

	again chan struct{} // buffered; a value asks the reaper to look again
}

func newReaper() *reaper {
	return &reaper{own: make(map[int]struct{}), again: make(chan struct{}, 1)}
}

// start runs f, which starts a process and returns its pid. f must have waited for any other
// process that it started. The reaper does not reap that pid until release is called. A nil
// reaper, that of an agent which is not PID 1, only calls f.
func (r *reaper) start(f func() (pid int, err error)) error {
	if r == nil {
		_, err := f()
		return err
	}
	// The reaper may have skipped a look because of this start.
	defer r.look()
	r.starting.RLock()
	defer r.starting.RUnlock()
	pid, err := f()
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own[pid] = struct{}{}
	return nil
}

// release ends the protection of a pid that has been waited for. The kernel may have given the
// pid to an orphan since, so the reaper looks again.
func (r *reaper) release(pid int) {
	if r == nil {
		return
	}
	r.mu.Lock()
	delete(r.own, pid)
	r.mu.Unlock()
	r.look()
}

func (r *reaper) look() {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

func (r *reaper) run() {
	// A buffer of one is enough: a signal that finds it full is covered by the look that has
	// not begun yet.
	dead := make(chan os.Signal, 1)
	signal.Notify(dead, unix.SIGCHLD)
	for {
		r.reap()
		select {
		case <-dead:
		case <-r.again:
		}
	}
}

// reap reaps all orphans that have ended.
func (r *reaper) reap() {
	// TryLock, because a Lock that waits for one slow start would block all later starts.
	if !r.starting.TryLock() {
		return
	}
	defer r.starting.Unlock()
	for {
		pid := firstDead()
		if pid == 0 {
			return
		}
		if r.isOwn(pid) {
			break // waitid shows only the first dead child; dead orphans may be behind this one
		}
		reapOne(pid)
	}
	for _, pid := range childPIDs() {
		if !r.isOwn(pid) {
			reapOne(pid)
		}
	}
}

func (r *reaper) isOwn(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.own[pid]
	return ok
}

// firstDead returns the pid of a child that has ended, and does not reap it. It returns 0 if
// there is none.
func firstDead() int {
	var info unix.Siginfo
	err := syscalls.IgnoringEINTR(func() error {
		return unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
	})
	if err != nil {
		return 0
	}
	// In siginfo_t the union comes after three ints and a padding int. si_pid is its first
	// field.
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16)))
}

// reapOne reaps a child if it has ended.
func reapOne(pid int) {
	_ = syscalls.IgnoringEINTR(func() error {
		return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WALL, nil)
	})
}

// childPIDs returns the children of all threads of this process.
func childPIDs() []int {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	var pids []int
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
