package main

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReaperTellsOrphansFromItsOwn: an orphan is reaped, and the exit status of an own child is
// left for its Wait.
func TestReaperTellsOrphansFromItsOwn(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
	r := newReaper()

	var own *exec.Cmd
	err := r.start(func() (int, error) {
		own = exec.Command("sh", "-c", "exit 7")
		if err := own.Start(); err != nil {
			return 0, err
		}
		return own.Process.Pid, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	waitDead(t, own.Process.Pid)
	// The own child is in front of the orphans in the kernel's list.
	r.reap()

	// The shell's child outlives it and becomes this process's. The pipe closes when that child
	// ends.
	parent := exec.Command("sh", "-c", "sleep 0.05 & echo $!")
	out, err := parent.Output()
	if err != nil {
		t.Fatal(err)
	}
	var orphan int
	for _, c := range out {
		if c >= '0' && c <= '9' {
			orphan = orphan*10 + int(c-'0')
		}
	}
	waitDead(t, orphan)
	r.reap()
	if err := unix.Kill(orphan, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the orphan is still there: %v", err)
	}
	if err := own.Wait(); own.ProcessState == nil || own.ProcessState.ExitCode() != 7 {
		t.Errorf("own child: %v, want exit status 7", err)
	}
	r.release(own.Process.Pid)
}

// waitDead waits until a child is a zombie, and does not reap it.
func waitDead(t *testing.T, pid int) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		done <- unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("wait for %d: %v", pid, err)
		}
	case <-time.After(patience):
		t.Fatalf("process %d goes on", pid)
	}
}

// TestReaperKeepsOutOfAStart: nothing is reaped while a process is being started, because its
// helper processes are not known.
func TestReaperKeepsOutOfAStart(t *testing.T) {
	r := newReaper()
	err := r.start(func() (int, error) {
		helper := exec.Command("sh", "-c", "exit 3")
		if err := helper.Start(); err != nil {
			return 0, err
		}
		waitDead(t, helper.Process.Pid)
		r.reap()
		_ = helper.Wait()
		if helper.ProcessState == nil || helper.ProcessState.ExitCode() != 3 {
			t.Error("the reaper took a helper of a start")
		}
		return 0, errors.New("failed start")
	})
	if err == nil {
		t.Error("the start's error is lost")
	}
	select {
	case <-r.again:
	default:
		t.Error("the look that was given up is not made up for")
	}
}

func TestChildPIDs(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for _, pid := range childPIDs() {
		if pid == cmd.Process.Pid {
			return
		}
	}
	t.Errorf("child %d of %d is not listed", cmd.Process.Pid, os.Getpid())
}
