package state

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holdLock is what a child of the test does instead of the tests.
const holdLock = "HUSK_TEST_HOLD_LOCK"

func init() {
	path := os.Getenv(holdLock)
	if path == "" {
		return
	}
	d, err := OpenDir(path)
	if err == nil {
		err = d.tryLock()
	}
	if err != nil {
		os.Exit(1)
	}
	_, _ = os.Stdout.WriteString("held\n")
	select {}
}

func startHolder(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdLock+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
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

// A stopped call that holds the lock is in nobody's way; one that runs is waited for.
func TestLockByForce(t *testing.T) {
	root := t.TempDir()
	d, err := Create(root, &Container{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.Unlock()
	cmd := startHolder(t, d.Path)
	short, cancel := context.WithTimeout(t.Context(), 3*holderPatience)
	defer cancel()
	if err := d.LockByForce(short); err == nil {
		t.Fatal("locked what another call holds")
	}
	if p, err := ProcessOf(cmd.Process.Pid); err != nil || !p.Alive() {
		t.Fatalf("a holder that is not stopped was killed: %v", err)
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	long, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := d.LockByForce(long); err != nil {
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
