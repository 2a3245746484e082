package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// statLine returns a line of /proc/PID/stat, proc(5), up to field 24.
func statLine(name, status, start string) string {
	return fmt.Sprintf("7 (%s) %s 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 %s 1000 10\n", name, status, start)
}

func TestParseStat(t *testing.T) {
	for _, tc := range []struct {
		name, line string
		status     byte
		start      uint64
		fails      bool
	}{
		{name: "plain", line: statLine("sh", "S", "4711"), status: 'S', start: 4711},
		{name: "name with spaces and parentheses", line: statLine(") R 1 (x y) (", "Z", "5"), status: 'Z', start: 5},
		{name: "name that ends in a parenthesis", line: statLine("a)", "R", "5"), status: 'R', start: 5},
		{name: "largest start time", line: statLine("sh", "S", "18446744073709551615"), status: 'S', start: 1<<64 - 1},
		{name: "empty", line: "", fails: true},
		{name: "no name", line: "7 sh S 1 7", fails: true},
		{name: "cut before the start time", line: strings.Join(strings.Fields(statLine("sh", "S", "1"))[:21], " "), fails: true},
		{name: "start time is no number", line: statLine("sh", "S", "-1"), fails: true},
		{name: "status of two letters", line: statLine("sh", "SS", "1"), fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, start, err := parseStat([]byte(tc.line))
			if tc.fails {
				if !errors.Is(err, errStat) {
					t.Errorf("%s: error %v, want %v", tc.name, err, errStat)
				}
				return
			}
			if err != nil || status != tc.status || start != tc.start {
				t.Errorf("%s: got %c, %d, %v; want %c, %d", tc.name, status, start, err, tc.status, tc.start)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte(statLine("sh", "S", "4711")))
	f.Add([]byte(statLine(") R (", "Z", "1")))
	f.Add([]byte("7 ("))
	f.Fuzz(func(t *testing.T, b []byte) {
		status, start, err := parseStat(b)
		if err != nil {
			return
		}
		// What was parsed must be in the line after its last parenthesis.
		rest := b[bytes.LastIndexByte(b, ')')+1:]
		fields := bytes.Fields(rest)
		if fields[0][0] != status || strings.TrimLeft(string(fields[19]), "0") != strings.TrimLeft(fmt.Sprint(start), "0") {
			t.Errorf("%q: got %c, %d", b, status, start)
		}
	})
}

// startSleep starts a child. The test kills it by its pid; cmd.Wait reaps it.
func startSleep(t *testing.T) (p Process, cmd *exec.Cmd) {
	t.Helper()
	cmd = exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	p, err := ProcessOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return p, cmd
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestAlive(t *testing.T) {
	self, err := ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !self.Alive() {
		t.Error("this process is not alive")
	}
	for name, p := range map[string]Process{
		"another process with the same pid": {PID: self.PID, StartTime: self.StartTime + 1},
		"no pid":                            {},
		"negative pid":                      {PID: -1, StartTime: self.StartTime},
		"pid above all pids":                {PID: 1 << 30, StartTime: self.StartTime},
	} {
		if p.Alive() {
			t.Errorf("%s counts as alive", name)
		}
	}
}

func TestKillAndWait(t *testing.T) {
	p, cmd := startSleep(t)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("wait for a running process: %v, want the deadline", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- p.Wait(deadline(t)) }()
	if err := p.Kill(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("wait for a killed process: %v", err)
	}
	// Until cmd.Wait it is a zombie, which husk counts as ended.
	if p.Alive() {
		t.Error("a zombie counts as alive")
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not killed")
	}
	if p.Alive() {
		t.Error("a reaped process counts as alive")
	}
	if err := p.Kill(deadline(t)); err != nil {
		t.Errorf("kill a process that has ended: %v", err)
	}
	if err := p.Wait(deadline(t)); err != nil {
		t.Errorf("wait for a process that has ended: %v", err)
	}
}

func TestKillSparesLaterProcess(t *testing.T) {
	p, _ := startSleep(t)
	earlier := Process{PID: p.PID, StartTime: p.StartTime - 1}
	if err := earlier.Kill(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := earlier.Wait(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if !p.Alive() {
		t.Error("a process was killed that only has the same pid")
	}
	for _, none := range []Process{{}, {PID: -1}} {
		if err := none.Kill(deadline(t)); err != nil {
			t.Errorf("kill %v: %v", none, err)
		}
		if err := none.Wait(deadline(t)); err != nil {
			t.Errorf("wait for %v: %v", none, err)
		}
	}
}
