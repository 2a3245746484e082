//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLifecycle(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	before := time.Now()
	c := e.create(e.bundle(withScript("echo out; echo err >&2; read line; exit 42")))

	s := e.state(c.id)
	if s.ID != c.id || s.Status != "created" || s.PID != c.pid || s.Bundle != c.bundle || s.OCIVersion == "" {
		t.Errorf("state after create: %+v, want created with pid %d and bundle %s", s, c.pid, c.bundle)
	}
	if s.Rootfs != filepath.Join(c.bundle, "rootfs") {
		t.Errorf("state: rootfs %q", s.Rootfs)
	}
	if s.Created.Before(before.Add(-time.Second)) || s.Created.After(time.Now().Add(time.Second)) {
		t.Errorf("state: created %v is not about now", s.Created)
	}
	if !alive(c.pid) {
		t.Error("the pid-file process is not alive after create")
	}
	if out := c.stdout.String() + c.stderr.String(); out != "" {
		t.Errorf("output before start: %q", out)
	}

	e.ok("start", c.id)
	c.exits(42) // stdin is /dev/null: read ends at once
	if c.stdout.String() != "out\n" || c.stderr.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", c.stdout, c.stderr)
	}
	if s := e.state(c.id); s.Status != "stopped" || s.PID != 0 {
		t.Errorf("state after the end: status %s, pid %d", s.Status, s.PID)
	}
	e.ok("delete", c.id)
	e.do("state", c.id).fails(1, "container does not exist")
	// Engines clean up again, from another process.
	e.ok("delete", "--force", c.id)
	e.ok("delete", "--force", c.id)
	if err := os.RemoveAll(filepath.Join(c.bundle, "rootfs")); err != nil {
		t.Errorf("the rootfs is still in use right after delete: %v", err)
	}
}

// TestStateOfZombieIsStopped: the pid in the pid file is a zombie until the engine reaps it,
// and the container counts as stopped.
func TestStateOfZombieIsStopped(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id, pidFile := e.id(), e.path("pid")
	bundle := e.bundle(withArgs("true"))
	if code := e.start(call{}, "create", "--bundle", bundle, "--pid-file", pidFile, id).code(); code != 0 {
		t.Fatalf("create: exit code %d", code)
	}
	pid := readPID(t, pidFile)
	e.ok("start", id)
	eventually(t, "the process is a zombie", testTimeout, func() bool { return !alive(pid) })
	if s := e.state(id); s.Status != "stopped" || s.PID != 0 {
		t.Errorf("state of a zombie: %s, pid %d", s.Status, s.PID)
	}
	e.ok("delete", id)
	if code := e.exitOf(reap(pid)); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestBundleDefaultsToWorkingDirectory(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	bundle, id := e.bundle(withScript("echo here")), e.id()
	r := e.start(call{dir: bundle}, "run", id).wait().is(0)
	if r.stdout != "here\n" {
		t.Errorf("stdout %q", r.stdout)
	}
}

func TestKillForms(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("testprog", "signals")))
	c.stdout.expect(t, "ready\n")
	for _, form := range []struct {
		args []string
		want int
	}{
		{[]string{}, 15},
		{[]string{"TERM"}, 15},
		{[]string{"SIGTERM"}, 15},
		{[]string{"15"}, 15},
		{[]string{"HUP"}, 1},
		{[]string{"SIGUSR1"}, 10},
		{[]string{"usr2"}, 12},
		{[]string{"37"}, 37},
		{[]string{"64"}, 64},
		{[]string{"28"}, 28},
	} {
		before := strings.Count(c.stdout.String(), fmt.Sprintf("signal %d\n", form.want))
		e.ok(append([]string{"kill", c.id}, form.args...)...)
		c.stdout.expectN(t, fmt.Sprintf("signal %d\n", form.want), before+1)
	}
	e.ok("kill", c.id, "0")
	e.ok("kill", "--all", c.id, "USR1")
	c.stdout.expectN(t, "signal 10\n", 2)
	e.ok("kill", c.id, "KILL")
	c.exits(137)
	e.do("kill", c.id, "TERM").fails(1, "container not running")
	e.ok("kill", "--all", c.id, "KILL")
	e.ok("kill", "-a", c.id, "9")
	e.ok("delete", c.id)
}

func TestKillAllReachesEveryProcess(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withScript(
		`sh -c 'trap "echo child; exit" USR1; echo up; while :; do sleep 0.1; done' &
		 trap "echo init" USR1; echo up
		 while :; do sleep 0.1; done`)))
	c.stdout.expectN(t, "up\n", 2)
	e.ok("kill", "--all", c.id, "USR1")
	c.stdout.expect(t, "child\n")
	c.stdout.expect(t, "init\n")
	c.stop()
}

func TestKillCreated(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withArgs("sleep", "1000")))
	e.ok("kill", c.id, "KILL")
	c.exits(137)
	eventually(t, "state is stopped", testTimeout, func() bool { return c.status() == "stopped" })
	e.ok("delete", c.id)
}

func TestDeleteCreated(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withArgs("sleep", "1000")))
	e.ok("delete", c.id)
	c.exits(137)
	e.do("state", c.id).fails(1, "container does not exist")
}

func TestDeleteForceRunning(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	e.do("delete", c.id).fails(1, "cannot delete container "+c.id+" that is not stopped: running")
	e.ok("delete", "-f", c.id)
	c.exits(137)
	e.do("state", c.id).fails(1, "container does not exist")
}

func TestRun(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id := e.id()
	r := e.do("run", "--bundle", e.bundle(withScript("echo out; echo err >&2; exit 3")), id).is(3)
	if r.stdout != "out\n" || r.stderr != "err\n" {
		t.Errorf("stdout %q, stderr %q", r.stdout, r.stderr)
	}
	e.do("state", id).fails(1, "container does not exist")
}

func TestRunKeep(t *testing.T) {
	if runtimeName == "runc" && strings.Contains(runcHelp(t), "--keep") == false {
		t.Skip("this runc has no run --keep")
	}
	t.Parallel()
	e := newEnv(t)
	id := e.id()
	e.do("run", "--keep", "--bundle", e.bundle(withScript("exit 4")), id).is(4)
	if s := e.state(id); s.Status != "stopped" {
		t.Errorf("state after run --keep: %s", s.Status)
	}
	e.ok("delete", id)
}

func runcHelp(t *testing.T) string {
	t.Helper()
	e := newEnv(t)
	return e.ok("run", "--help")
}

func TestRunDetached(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id, pidFile := e.id(), e.path("pid")
	bundle := e.bundle(withScript("echo detached; exec sleep 1000"))
	p, exit := e.detach(pidFile, "run", "--detach", "--pid-file", pidFile, "--bundle", bundle, id)
	p.stdout.expect(t, "detached\n")
	if s := e.state(id); s.Status != "running" {
		t.Errorf("state: %s", s.Status)
	}
	e.ok("kill", id, "KILL")
	if code := e.exitOf(exit); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	e.ok("delete", id)
}

// TestRunForwardsSignals: a foreground run passes signals on to the container.
func TestRunForwardsSignals(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	p := e.start(call{}, "run", "--bundle", e.bundle(withScript(
		`trap "echo term; exit 9" TERM; trap "echo usr1" USR1; echo ready; while :; do sleep 0.1; done`)), e.id())
	p.stdout.expect(t, "ready\n")
	for _, s := range []unix.Signal{unix.SIGUSR1, unix.SIGTERM} {
		if err := p.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if s == unix.SIGUSR1 {
			p.stdout.expect(t, "usr1\n")
		}
	}
	r := p.wait().is(9)
	if !strings.HasSuffix(r.stdout, "term\n") {
		t.Errorf("stdout %q", r.stdout)
	}
}
