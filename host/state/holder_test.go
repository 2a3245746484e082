package state

import (
	"io"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// holdLock makes the test binary hold a lock instead of running the tests.
const holdLock = "HUSK_TEST_HOLD_LOCK"

func init() {
	path := os.Getenv(holdLock)
	if path == "" {
		return
	}
	d, err := open(path)
	if err == nil {
		err = d.tryLock()
	}
	if err != nil {
		os.Exit(1)
	}
	_, _ = os.Stdout.WriteString("held\n")
	// The child waits for its stdin, because Go ends a program in which all goroutines wait for
	// nothing.
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func startHolder(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdLock+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil { // Wait closes it
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestKillStoppedHolder: a stopped process that holds the lock is killed, and a running one is
// not.
func TestKillStoppedHolder(t *testing.T) {
	d, err := Create(t.TempDir(), &Container{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.Unlock()
	cmd := startHolder(t, d.Path)
	p, err := ProcessOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.KillStoppedHolder(deadline(t)); err != nil {
		t.Error(err)
	}
	if !p.Alive() {
		t.Fatal("a holder that is not stopped was killed")
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for !p.Suspended() {
		runtime.Gosched() // the signal is being delivered
	}
	if err := d.KillStoppedHolder(deadline(t)); err != nil {
		t.Error(err)
	}
	if err := d.Lock(deadline(t)); err != nil {
		t.Error(err)
	}
}

func FuzzFindHolder(f *testing.F) {
	f.Add("1: FLOCK  ADVISORY  WRITE 1351 00:18:1042 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 1377 00:18:1042 0 EOF\n", "00:18:1042")
	f.Add("1: POSIX  ADVISORY  WRITE 1351 00:18:1042 0 EOF\n", "00:18:1042")
	f.Fuzz(func(t *testing.T, locks, file string) {
		if pid := findHolder(locks, file); pid < 0 {
			t.Errorf("pid %d", pid)
		}
	})
}
