package main

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper reaps the orphans PID 1 inherits and leaves the agent's own children to
// who started them: an exit status taken here would be lost to their Wait.
type reaper struct {
	// starting is held shared while a process is being started, so that the
	// reaper never sees a child of the agent before it is in own.
	starting sync.RWMutex

	mu  sync.Mutex
	own map[int]struct{}

	again chan struct{} // look again, buffered
}

func newReaper() *reaper {
	return &reaper{own: make(map[int]struct{}), again: make(chan struct{}, 1)}
}

// start runs f, which starts processes and has waited for all of them on return
// but the one whose pid it returns. That one is its starter's to wait for, until
// release. A nil reaper, of an agent that is not PID 1, only calls f.
func (r *reaper) start(f func() (pid int, err error)) error {
	if r == nil {
		_, err := f()
		return err
	}
	// A look given up because of this start is made up for after it.
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

// release ends the protection of a pid that has been waited for. An orphan may
// have got the number since, hence the new look.
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
	// One slot is enough: a signal that finds it full is covered by the look that
	// has not begun yet.
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

// reap takes every orphan that is dead now.
func (r *reaper) reap() {
	// Not a waiting Lock: it would hold up every start behind the slowest one.
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
			break // orphans may queue behind it, where waitid cannot see them
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

// firstDead returns the pid of a child that has ended, without reaping it; 0 if
// there is none.
func firstDead() int {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0
		}
		// The union begins after three ints and a padding one; si_pid is first in it.
		return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16)))
	}
}

// reapOne reaps a child if it has ended.
func reapOne(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// childPIDs lists the children of all threads of this process.
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
