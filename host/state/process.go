package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Process identifies a host process by pid and start time, so that it cannot be confused with a
// later one that has the same pid.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // in clock ticks after boot: field 22 of /proc/PID/stat, proc(5)
}

// ProcessOf returns the Process with this pid. It returns an error if there is none.
func ProcessOf(hostPID int) (Process, error) {
	_, start, err := readStat(hostPID)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: hostPID, StartTime: start}, nil
}

// Alive says whether exactly this process runs. A zombie does not, and neither does a process
// that has released everything and waits for the end of its pid namespace.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	status, start, err := readStat(p.PID)
	return err == nil && start == p.StartTime && status != 'Z' && status != 'X' && !p.gaveBack()
}

// gaveBack says whether the process has ended except for its pid. The first process of a pid
// namespace becomes a zombie only when all other processes of the namespace were reaped. The
// parent of a process that exec has put there, such as a stopped cli, may never do that. A
// process releases its namespaces after its memory and descriptors, so their absence shows that
// it has ended.
func (p Process) gaveBack() bool {
	_, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(p.PID), "ns/mnt"))
	return errors.Is(err, fs.ErrNotExist)
}

// Suspended says whether a signal (SIGSTOP) has stopped the process. It does not answer until
// another signal lets it continue.
func (p Process) Suspended() bool {
	status, start, err := readStat(p.PID)
	return err == nil && start == p.StartTime && status == 'T'
}

// Kill kills the process with SIGKILL and waits until it has ended or ctx ends. It is no error
// if the process has ended already. Kill does not reap it; its parent does.
func (p Process) Kill(ctx context.Context) error {
	return p.withPidfd(func(pidfd int) error {
		if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", p.PID, err)
		}
		return p.wait(ctx, pidfd)
	})
}

// Wait waits until the process has ended or ctx ends.
func (p Process) Wait(ctx context.Context) error {
	return p.withPidfd(func(pidfd int) error { return p.wait(ctx, pidfd) })
}

// withPidfd calls f with a pidfd of exactly this process. If the process has ended, it does not
// call f.
func (p Process) withPidfd(f func(pidfd int) error) error {
	if p.PID <= 0 {
		return nil
	}
	pidfd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer unix.Close(pidfd)
	// It is checked after the pidfd was opened, because from then on the pidfd cannot mean
	// another process.
	if !p.Alive() {
		return nil
	}
	return f(pidfd)
}

func (p Process) wait(ctx context.Context, pidfd int) error {
	const slice = 100 // milliseconds between two looks at ctx
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, slice)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", p.PID, err)
		}
		if n > 0 || p.gaveBack() {
			return nil
		}
	}
	return fmt.Errorf("wait for process %d: it has not ended: %w", p.PID, ctx.Err())
}

var errStat = errors.New("not in the form of proc(5)")

// readStat returns fields 3 (state) and 22 (starttime) of /proc/PID/stat. Field 2, the
// command's name, may contain spaces and parentheses, so fields are counted from the last ')'.
func readStat(hostPID int) (status byte, start uint64, err error) {
	path := filepath.Join("/proc", strconv.Itoa(hostPID), "stat")
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, fmt.Errorf("read process: %w", err)
	}
	return parseStat(b)
}

func parseStat(b []byte) (status byte, start uint64, err error) {
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("parse process stat: %w", errStat)
	}
	fields := bytes.Fields(b[end+1:])
	const stateField, startField = 3, 22
	if len(fields) <= startField-stateField || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("parse process stat: %w", errStat)
	}
	start, err = strconv.ParseUint(string(fields[startField-stateField]), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("parse process stat: %w", errStat)
	}
	return fields[0][0], start, nil
}
