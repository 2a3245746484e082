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

// Process is a host process that cannot be mistaken for a later one with the
// same pid: it is saved with its start time.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // clock ticks after boot, /proc/PID/stat field 22, proc(5)
}

// ProcessOf reads the start time of a process that exists.
func ProcessOf(hostPID int) (Process, error) {
	_, start, err := readStat(hostPID)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: hostPID, StartTime: start}, nil
}

// Alive says whether exactly this process still runs; a zombie does not, nor does one
// that waits, with all it had given back, for the end of its pid namespace.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	status, start, err := readStat(p.PID)
	return err == nil && start == p.StartTime && status != 'Z' && status != 'X' && !p.gaveBack()
}

// gaveBack says whether the process has ended but for its pid. The first process of a
// pid namespace becomes a zombie only when all others there have been reaped, and the
// parent of one that exec has put there, a stopped cli for example, may never do so.
// A process gives its namespaces back after its memory and its descriptors.
func (p Process) gaveBack() bool {
	_, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(p.PID), "ns/mnt"))
	return errors.Is(err, fs.ErrNotExist)
}

// Suspended says whether a signal has stopped the process (SIGSTOP): it answers nobody
// until another lets it go on.
func (p Process) Suspended() bool {
	status, start, err := readStat(p.PID)
	return err == nil && start == p.StartTime && status == 'T'
}

// Kill ends the process with SIGKILL and waits, until ctx ends, for it to be
// gone. One that has ended already is no error. Reaping it is its parent's affair.
func (p Process) Kill(ctx context.Context) error {
	return p.withPidfd(func(pidfd int) error {
		if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", p.PID, err)
		}
		return p.wait(ctx, pidfd)
	})
}

// Wait waits until the process has ended or ctx has.
func (p Process) Wait(ctx context.Context) error {
	return p.withPidfd(func(pidfd int) error { return p.wait(ctx, pidfd) })
}

// withPidfd calls f with a pidfd of exactly this process, or not at all when it
// has ended.
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
	// Looked at after the pidfd was opened: from here on it cannot be another.
	if !p.Alive() {
		return nil
	}
	return f(pidfd)
}

func (p Process) wait(ctx context.Context, pidfd int) error {
	const slice = 100 // ms between two looks at ctx
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

// readStat returns fields 3 (state) and 22 (starttime). The command name,
// field 2, may hold spaces and parentheses, so fields count from its last ')'.
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
