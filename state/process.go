package state

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

// Alive says whether exactly this process still runs; a zombie does not.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	status, start, err := readStat(p.PID)
	return err == nil && start == p.StartTime && status != 'Z' && status != 'X'
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
