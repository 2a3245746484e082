package qemu

import (
	"bytes"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
)

// watcher answers the system calls that the vmm's filter leaves to it: one that starts
// the vmm, those of specialFiles and ramFile, and the intrusions. All others that
// reach it proceed.
type watcher struct {
	special *specialFiles // nil without a share
	ram     *ramFile      // nil without a template
	start   *startFiles   // nil for a vmm that is root

	vmm chan target // holds the vmm once it runs; closed if it does not start
	// guestRuns is set before the guest executes its first instruction: until then the
	// vmm is what was started, if need be a script that executes QEMU.
	guestRuns atomic.Bool
	intruded  atomic.Pointer[string]
	ended     chan struct{} // closed when serve has ended, or will never begin
}

// target is the vmm once it runs.
type target struct {
	pid   int // as this process sees it
	pidfd int
}

func newWatcher(special *specialFiles, ram *ramFile) *watcher {
	return &watcher{special: special, ram: ram, vmm: make(chan target, 1), ended: make(chan struct{})}
}

// watchFor returns the watcher of a machine, and has the vmm inherit what that needs.
func watchFor(cfg hypervisor.Config, inherit func(*os.File) int) (*watcher, error) {
	var ram *ramFile
	var special *specialFiles
	var err error
	if cfg.RAMFile != "" && !cfg.RAMShared {
		if ram, err = openRAMFile(cfg.RAMFile); err != nil {
			return nil, err
		}
	}
	if cfg.ShareDir != "" {
		if special, err = newSpecialFiles(inherit); err != nil {
			if ram != nil {
				ram.close()
			}
			return nil, fmt.Errorf("watch over special files: %w", err)
		}
	}
	w := newWatcher(special, ram)
	if cfg.User != nil {
		w.start = newStartFiles(cfg)
		if special != nil {
			special.owns = cfg.User.Owns
		}
	}
	return w, nil
}

// watched are the calls that the filter has to leave, beside the intrusions.
func (w *watcher) watched() watch {
	all := watch{}
	if w.special != nil {
		all.add(w.special.watched())
	}
	if w.ram != nil {
		all.add(w.ram.watched())
	}
	if w.start != nil {
		all.add(w.start.watched())
	}
	return all
}

func (all watch) add(more watch) {
	for name, args := range more {
		all[name] = append(all[name], args...)
	}
}

// started names the vmm; pidfd is copied.
func (w *watcher) started(pid, pidfd int) error {
	own, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w.vmm <- target{pid: pid, pidfd: own}
	return nil
}

// unwatched is for a vmm without a listener, or none.
func (w *watcher) unwatched() {
	w.close()
	close(w.ended)
}

func (w *watcher) close() {
	if w.special != nil {
		w.special.close()
	}
	if w.ram != nil {
		w.ram.close()
	}
}

// serve ends when the vmm has: nobody else is under the filter. What the watcher holds
// it lets go of.
func (w *watcher) serve(calls *listener) {
	defer close(w.ended)
	defer w.close()
	defer calls.close()
	// First the vmm's own execve, for which the one that names the vmm waits.
	n, err := calls.receive()
	if err != nil {
		return
	}
	calls.proceed(n)
	t, ok := <-w.vmm
	if !ok {
		return
	}
	defer unix.Close(t.pidfd)
	for {
		n, err := calls.receive()
		if err != nil {
			return
		}
		w.handle(calls, t, n)
	}
}

func (w *watcher) handle(calls *listener, t target, n notification) {
	switch {
	case n.nr == unix.SYS_EXECVE && !w.guestRuns.Load():
		calls.proceed(n)
	case isIntrusion(n.nr):
		name := callName(n.nr)
		w.intruded.CompareAndSwap(nil, &name)
		// Not before it is dead does the call return, if ever.
		if err := unix.PidfdSendSignal(t.pidfd, unix.SIGKILL, nil, 0); err != nil {
			calls.answer(n, 0, unix.EPERM)
		}
	case w.ram != nil && w.ram.handle(calls, t, n):
	case w.start != nil && w.start.handle(calls, t, n):
	case w.special != nil && w.special.handle(calls, t, n):
	default:
		calls.proceed(n)
	}
}

// intrusion is the reason why the watcher has killed the vmm, if it has.
func (w *watcher) intrusion() error {
	if call := w.intruded.Load(); call != nil {
		return fmt.Errorf("vmm called %s, which it does only when somebody has taken it over: it was killed", *call)
	}
	return nil
}

// readString reads what ends with a zero byte, of size bytes with that at most.
func (t target) readString(at uint64, size int) (string, error) {
	buf := make([]byte, size)
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(size)}}
	// Split where a page begins, which need not be there.
	var remote []unix.RemoteIovec
	page := uint64(os.Getpagesize())
	for left := uint64(size); left > 0; {
		n := min(left, page-at%page)
		remote = append(remote, unix.RemoteIovec{Base: uintptr(at), Len: int(n)})
		at, left = at+n, left-n
	}
	n, err := unix.ProcessVMReadv(t.pid, local, remote, 0)
	if err != nil {
		return "", err
	}
	end := bytes.IndexByte(buf[:n], 0)
	if end < 0 {
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:end]), nil
}
