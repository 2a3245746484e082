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

// youth is how long after execve a program is taken to be still on its way to
// where it waits for signals: generous for an emulated guest, which translates all
// of it first, and short for whoever waits for a kill.
const youth = time.Second

// AwaitHandler waits until the process, the first of its pid namespace, has made
// known what is to be done on a signal and sleeps, or is not young any more.
//
// The kernel drops what the first process has no handler for, and a shell that has
// a trap but is not in its wait yet goes on to wait. A program on bare metal is
// there before anyone who has seen it start can send a signal; in a guest one
// would come too early. A signal that is ignored by default, or can't be handled,
// has nothing to wait for.
func (p *Process) AwaitHandler(ctx context.Context, sig unix.Signal) {
	switch sig {
	case 0, unix.SIGKILL, unix.SIGSTOP, unix.SIGCONT, unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH:
		return
	}
	began := p.executed.Load()
	if began == nil {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, began.Add(youth))
	defer cancel()
	// There is no event for it.
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

// awaits says whether a process catches, ignores or blocks a signal, and sleeps.
// One whose status can't be read has ended.
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
