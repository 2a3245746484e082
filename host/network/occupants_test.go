package network

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startIn runs sleep in the namespace, with the given attributes.
func (ns *namespace) startIn(seconds string, attr *unix.SysProcAttr) *exec.Cmd {
	ns.t.Helper()
	cmd := exec.Command("sleep", seconds)
	cmd.SysProcAttr = attr
	ns.do(cmd.Start)
	ns.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

func TestOccupants(t *testing.T) {
	ns := newNamespace(t)
	look := func() []Occupant {
		t.Helper()
		found, err := Occupants(ns.path())
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := look(); len(found) != 0 {
		t.Fatalf("in an empty namespace: %+v", found)
	}
	visitor := ns.startIn("1000", nil)
	began := time.Now()
	if found := look(); len(found) != 1 || found[0] != (Occupant{visitor.Process.Pid, "sleep", true}) || time.Since(began) > leaveTime {
		t.Errorf("with a visitor: %+v after %s", found, time.Since(began))
	}
	// Occupants waits for a process that ends by itself.
	ns.startIn("0.5", &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID})
	if found := look(); len(found) != 1 {
		t.Errorf("with one that goes: %+v", found)
	}
	container := ns.startIn("1000", &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID})
	found := look()
	if len(found) != 2 || found[0].Visits == found[1].Visits {
		t.Errorf("with a container: %+v", found)
	}
	for _, o := range found {
		if o.Visits != (o.PID == visitor.Process.Pid) || (!o.Visits && o.PID != container.Process.Pid) {
			t.Errorf("with a container: %+v", found)
		}
	}
}

func BenchmarkOccupants(b *testing.B) {
	for b.Loop() {
		if _, err := occupants("/proc/self/ns/ipc"); err != nil {
			b.Fatal(err)
		}
	}
}
