package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// holderPatience is how long LockByForce waits before it looks whether the holder of
// the lock is stopped, each time.
const holderPatience = 300 * time.Millisecond

// LockByForce is Lock, but a husk call that holds the lock and has been stopped
// (SIGSTOP) is killed: it would never give the lock back, and it may be the very create
// that the caller takes back.
func (d *Dir) LockByForce(ctx context.Context) error {
	for {
		patient, cancel := context.WithTimeout(ctx, holderPatience)
		err := d.Lock(patient)
		late := patient.Err() != nil
		cancel()
		if err == nil || !late || ctx.Err() != nil {
			return err
		}
		if kerr := d.killStoppedHolder(ctx); kerr != nil {
			return errors.Join(err, kerr)
		}
	}
}

// killStoppedHolder kills who holds the lock, if that is stopped.
func (d *Dir) killStoppedHolder(ctx context.Context) error {
	pid, err := d.holder()
	if err != nil || pid <= 0 {
		return err
	}
	p, err := ProcessOf(pid)
	if err != nil {
		return nil //nolint:nilerr // it has ended, and its lock with it
	}
	// Only who is still the holder after its start time was read is meant.
	if again, err := d.holder(); err != nil || again != pid || !p.stopped() {
		return err
	}
	return p.Kill(ctx)
}

func (p Process) stopped() bool {
	status, start, err := readStat(p.PID)
	return err == nil && start == p.StartTime && status == 'T'
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
