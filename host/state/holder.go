package state

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// KillStoppedHolder kills the process that holds the lock if a signal (SIGSTOP) has stopped it.
// Such a process is a call of husk that would never release the lock; it may be the create that
// the caller wants to undo.
func (d *Dir) KillStoppedHolder(ctx context.Context) error {
	pid, err := d.holder()
	if err != nil || pid <= 0 {
		return err
	}
	p, err := ProcessOf(pid)
	if err != nil {
		return nil //nolint:nilerr // it has ended, and released the lock
	}
	// The process is killed only if it still holds the lock after its start time was read.
	if again, err := d.holder(); err != nil || again != pid || !p.Suspended() {
		return err
	}
	return p.Kill(ctx)
}

// holder returns the pid of the process that holds the lock. It is 0 if no process does, or
// none that is visible in this pid namespace.
func (d *Dir) holder() (pid int, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.dir.Fd()), &st); err != nil {
		return 0, fmt.Errorf("find the holder of the lock: %w", err)
	}
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, fmt.Errorf("find the holder of the lock: %w", err)
	}
	return findHolder(string(b), fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)), nil
}

// findHolder returns the pid that holds an exclusive flock(2) on a file, by the text of
// /proc/locks:
//
//	1: FLOCK  ADVISORY  WRITE 1351 00:18:1042 0 EOF
//	1: -> FLOCK  ADVISORY  WRITE 1377 00:18:1042 0 EOF
//
// The second line is a process that waits.
func findHolder(locks, file string) int {
	for line := range strings.Lines(locks) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[3] != "WRITE" || f[5] != file {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			return pid
		}
	}
	return 0
}
