package qemu

import (
	"bytes"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
)

// watcher answers the system calls that the vmm's filter sends to it: those of specialFiles,
// ramFile and startFiles, the execve that starts the vmm, and the intrusions. All other calls
// proceed.
type watcher struct {
	special *specialFiles // nil without a share
	ram     *ramFile      // nil without a template
	start   *startFiles   // nil if the vmm is root

	vmm chan target // gets the vmm when it runs; closed if it does not start
	// guestRuns is set before the guest executes its first instruction. Until then execve is no
	// intrusion, because the configured binary may be a script that executes QEMU.
	guestRuns atomic.Bool
	intruded  atomic.Pointer[string]
	ended     chan struct{} // closed when serve has ended or will never begin
}

// target is a running vmm.
type target struct {
	pid   int // in this process's pid namespace
	pidfd int
}

func newWatcher(special *specialFiles, ram *ramFile) *watcher {
	return &watcher{special: special, ram: ram, vmm: make(chan target, 1), ended: make(chan struct{})}
}

// watchFor returns the watcher for a machine, and makes the vmm inherit the files that it
// needs.
func watchFor(cfg hypervisor.Config, inherit func(*os.File) int) (*watcher, error) {
	var ram *ramFile
	var special *specialFiles
	var err error
	if isClone(cfg) {
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

// watched returns the calls that the filter has to send to the watcher, without the intrusions.
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

// started tells the watcher the vmm. It duplicates pidfd.
func (w *watcher) started(pid, pidfd int) error {
	own, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w.vmm <- target{pid: pid, pidfd: own}
	return nil
}

// unwatched tells the watcher that there is no vmm, or none with a listener.
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

// serve answers calls until the vmm has ended, which leaves no process under the filter. Then
// it closes the watcher's files.
func (w *watcher) serve(calls *listener) {
	defer close(w.ended)
	defer w.close()
	defer calls.close()
	// The first call is the vmm's own execve, which the code that calls started waits for.
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
		// The call does not return before the vmm is dead.
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

// intrusion returns the reason why the watcher has killed the vmm; nil if it has not.
func (w *watcher) intrusion() error {
	if call := w.intruded.Load(); call != nil {
		return fmt.Errorf("vmm called %s, which it does only when somebody has taken it over: it was killed", *call)
	}
	return nil
}

// readString reads a string from the vmm's memory that ends with a zero byte and has at most
// size bytes with it.
func (t target) readString(at uint64, size int) (string, error) {
	buf := make([]byte, size)
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(size)}}
	// The read is split at a page boundary, because the next page may not be mapped.
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
