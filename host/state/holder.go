package state

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// KillStoppedHolder kills who holds the lock, if that has been stopped (SIGSTOP): a husk
// call that would never give the lock back, and maybe the very create that the caller
// takes back.
func (d *Dir) KillStoppedHolder(ctx context.Context) error {
	pid, err := d.holder()
	if err != nil || pid <= 0 {
		return err
	}
	p, err := ProcessOf(pid)
	if err != nil {
		return nil //nolint:nilerr // it has ended, and its lock with it
	}
	// Only who is still the holder after its start time was read is meant.
	if again, err := d.holder(); err != nil || again != pid || !p.Suspended() {
		return err
	}
	return p.Kill(ctx)
}

// holder finds the pid of who holds the lock; 0 is nobody, or nobody to be seen from
// here.
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

// findHolder looks for the exclusive flock(2) of a file in the text of /proc/locks:
//
//	1: FLOCK  ADVISORY  WRITE 1351 00:18:1042 0 EOF
//	1: -> FLOCK  ADVISORY  WRITE 1377 00:18:1042 0 EOF
//
// of which the second only waits.
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
