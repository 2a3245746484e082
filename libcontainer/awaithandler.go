package libcontainer

import (
	"bufio"
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// handlerWait is how long after execve AwaitHandler may wait. A program in an emulated guest,
// which has to be translated first, needs most of it; the caller of kill waits no longer than
// this.
const handlerWait = time.Second

// AwaitHandler waits until the process, the first of its pid namespace, handles, ignores or
// blocks sig and sleeps, or until a second after execve has passed.
//
// The kernel drops a signal for which the first process of a pid namespace has no handler, and
// a shell that has set a trap but does not wait yet would miss it. On the host a program is
// ready long before anyone can signal it; in an emulated guest it is not. Signals that cannot
// be handled, or whose default is to be ignored, need no wait.
func (p *Process) AwaitHandler(ctx context.Context, sig unix.Signal) {
	switch sig {
	case 0, unix.SIGKILL, unix.SIGSTOP, unix.SIGCONT, unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH:
		return
	}
	began := p.executed.Load()
	if began == nil {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, began.Add(handlerWait))
	defer cancel()
	// The kernel sends no event when a process installs a handler.
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for ctx.Err() == nil && !awaits(p.proc.Pid, sig) {
		select {
		case <-ctx.Done():
		case <-p.done:
			return
		case <-poll.C:
		}
	}
}

// awaits says whether a process handles, ignores or blocks sig, and sleeps. It returns true for
// a process whose status cannot be read, because it has ended.
func awaits(pid int, sig unix.Signal) bool {
	f, err := os.Open(procFile(pid, "status"))
	if err != nil {
		return true
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "State":
			if !strings.HasPrefix(value, "S") {
				return false
			}
		case "SigBlk", "SigIgn", "SigCgt":
			mask, err := strconv.ParseUint(value, 16, 64)
			if err != nil || mask&(1<<(uint(sig)-1)) != 0 {
				return true
			}
		}
	}
	return lines.Err() != nil
}
