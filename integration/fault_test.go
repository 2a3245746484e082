//go:build integration

package integration

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStoppedSupervisor: if a supervisor does not answer, no verb waits for ever, and kill KILL
// and delete --force work at once.
func TestStoppedSupervisor(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	created := e.create(e.bundle(withArgs("sleep", "1000")))
	for _, pid := range []int{c.pid, created.pid} {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	// The calls run at the same time, because each takes as long as a guest may take under
	// load.
	var calls []*process
	for _, args := range [][]string{
		{"start", created.id},
		{"exec", c.id, "true"},
		{"kill", c.id, "TERM"},
		{"ps", c.id},
		{"pause", c.id},
		{"update", "--pids-limit", "100", c.id},
		{"events", "--stats", c.id},
	} {
		calls = append(calls, e.start(call{}, args...))
	}
	if s := c.status(); s != "running" {
		t.Errorf("state %s, want running", s)
	}
	for _, p := range calls {
		if r := p.wait(); r.code == 0 || !strings.Contains(r.stderr, "the supervisor has not answered") {
			t.Errorf("%s: exit code %d, %q", r.what, r.code, r.stderr)
		}
	}
	e.ok("kill", c.id, "KILL")
	c.exits(137)
	e.ok("delete", c.id)
	e.ok("delete", "--force", created.id)
	created.exits(137)
}

// TestStoppedVMM: a guest that no longer runs can still be killed.
func TestStoppedVMM(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	vmms := e.vmms()
	if len(vmms) != 1 {
		t.Fatalf("vmm processes of one container: %v", vmms)
	}
	if err := unix.Kill(vmms[0], unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	e.ok("kill", c.id, "KILL")
	c.exits(137)
	e.ok("delete", c.id)
}

// TestDamagedState: delete --force ends and removes a container whatever its state file
// contains.
func TestDamagedState(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	for name, damage := range map[string]func(path string) error{
		"missing":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 100) },
	} {
		c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
		if err := damage(filepath.Join(e.root, c.id, "husk.json")); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"state", c.id}, {"delete", c.id}, {"kill", c.id, "KILL"}} {
			if r := e.do(args...); r.code != 1 || !strings.Contains(r.stderr, "state is damaged") {
				t.Errorf("%s: %v: exit code %d, %q", name, args, r.code, r.stderr)
			}
		}
		e.ok("delete", "--force", c.id)
		c.exits(137)
		e.do("state", c.id).fails(1, "container does not exist")
	}
}

// TestFullStateDirectory: a change that cannot be saved is not made.
func TestFullStateDirectory(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	// It is outside of the test's directory: other tests that unshare their mounts meanwhile
	// keep a copy of this mount, which the leak check would find.
	root, err := os.MkdirTemp("", "full-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(root)
	e.root = root
	if err := unix.Mount("tmpfs", e.root, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(e.root, 0); err != nil {
			t.Errorf("unmount the state directory: %v", err)
		}
	}()
	c := e.create(e.bundle(withScript("echo runs; while :; do echo x; sleep 0.05; done")))
	full := filepath.Join(e.root, ".full")
	fill := func() {
		t.Helper()
		f, err := os.Create(full)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := io.Copy(f, neverEnding{}); err == nil {
			t.Fatal("the state directory is never full")
		}
	}
	empty := func() {
		t.Helper()
		if err := os.Remove(full); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(verb, status string) {
		t.Helper()
		if r := e.do(verb, c.id); r.code != 1 || !strings.Contains(r.stderr, "no space left on device") {
			t.Errorf("%s: exit code %d, %q", verb, r.code, r.stderr)
		}
		if s := c.status(); s != status {
			t.Errorf("after %s failed: %s, want %s", verb, s, status)
		}
	}
	fill()
	refused("start", "created")
	if out := c.stdout.String(); out != "" {
		t.Errorf("start failed and the process runs: %q", out)
	}
	empty()
	e.ok("start", c.id)
	c.stdout.expect(t, "runs\n")
	fill()
	refused("pause", "running")
	size := len(c.stdout.String())
	eventually(t, "the container is not frozen", testTimeout, func() bool { return len(c.stdout.String()) > size })
	empty()
	e.ok("pause", c.id)
	fill()
	refused("resume", "paused")
	empty()
	e.ok("resume", c.id)
	fill()
	e.ok("delete", "--force", c.id) // this needs no space
	c.exits(137)
	empty()
}

// neverEnding is a file without end.
type neverEnding struct{}

func (neverEnding) Read(b []byte) (int, error) { return len(b), nil }
