package state

import (
	"net"
	"os"
	"slices"
	"testing"
)

func TestListeners(t *testing.T) {
	d := create(t, t.TempDir(), "c1")
	if all, err := d.Listeners(); err != nil || len(all) > 0 {
		t.Errorf("without a socket: %v, %v", all, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: d.FDPath(StreamSocket)})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	self, err := ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if all, err := d.Listeners(); err != nil || !slices.Equal(all, []Process{self}) {
		t.Errorf("listening: %v, %v; want this process", all, err)
	}
	l.Close()
	if all, err := d.Listeners(); err != nil || len(all) > 0 {
		t.Errorf("a socket nobody listens on: %v, %v", all, err)
	}
}

// TestStatusBeforeTheSupervisor: a container that is being created does not count as stopped.
func TestStatusBeforeTheSupervisor(t *testing.T) {
	self, err := ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	c := &Container{ID: "c1", Saved: Creating, Creator: self}
	if s := c.Status(); s != Creating {
		t.Errorf("while it is made: %s", s)
	}
	c.Creator.StartTime++
	if s := c.Status(); s != Stopped {
		t.Errorf("when its create has ended: %s", s)
	}
	c.Creator = self
	c.Supervisor = Process{PID: self.PID, StartTime: self.StartTime + 1}
	if s := c.Status(); s != Stopped {
		t.Errorf("when its supervisor has ended: %s", s)
	}
}
