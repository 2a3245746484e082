package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/state"
)

// TestListeningProcess is not a test: it is the process that startListening starts.
func TestListeningProcess(t *testing.T) {
	path := os.Getenv("HUSK_TEST_LISTEN")
	if path == "" {
		t.Skip("started by other tests")
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("listening")
	// Not select {}: if nothing at all could wake this process, Go's runtime would end it.
	for {
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
	}
}

// startListening starts a process that stands for a supervisor: it listens on a container's
// control socket.
func startListening(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestListeningProcess$")
	cmd.Env = append(os.Environ(), "HUSK_TEST_LISTEN="+filepath.Join(dir, state.ControlSocket))
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
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// made makes the directory of a container whose create has ended.
func made(t *testing.T, c *state.Container) (root, dir string) {
	t.Helper()
	root = t.TempDir()
	d, err := state.Create(root, c)
	if err != nil {
		t.Fatal(err)
	}
	dir = d.Path
	d.Close()
	return root, dir
}

func wantGone(t *testing.T, dir string, cmd *exec.Cmd) {
	t.Helper()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the container's directory is still there: %v", err)
	}
	if p, err := state.ProcessOf(cmd.Process.Pid); err == nil && p.Alive() {
		t.Error("the supervisor lives on")
	}
}

// TestDeleteDamaged: whatever the saved state contains, delete --force ends the supervisor,
// even if it is stopped, and no other verb says that the container does not exist.
func TestDeleteDamaged(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"missing":   os.Remove,
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"truncated": func(path string) error { return os.Truncate(path, 20) },
		"garbage":   func(path string) error { return os.WriteFile(path, []byte{0, 1, 2}, 0o600) },
		"a directory": func(path string) error {
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, dir := made(t, &state.Container{ID: "c1", Saved: state.Running})
			cmd := startListening(t, dir)
			if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(dir, "husk.json")); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"state", "c1"}, {"kill", "c1", "KILL"}, {"delete", "c1"}, {"exec", "c1", "true"}} {
				if _, err := husk(root, args...); !errors.Is(err, state.ErrDamaged) {
					t.Errorf("%v: error %v, want that it is damaged", args, err)
				}
			}
			if _, err := husk(root, "delete", "--force", "c1"); err != nil {
				t.Error(err)
			}
			wantGone(t, dir, cmd)
		})
	}
}

// TestDeleteUnsavedSupervisor: a supervisor whose pid was not saved is found.
func TestDeleteUnsavedSupervisor(t *testing.T) {
	root, dir := made(t, &state.Container{ID: "c1", Saved: state.Creating})
	cmd := startListening(t, dir)
	if _, err := husk(root, "delete", "c1"); err != nil {
		t.Error(err)
	}
	wantGone(t, dir, cmd)
}

// TestDeleteWhileCreating: a container that is being created does not count as stopped, and
// delete --force also deletes the container that create has finished meanwhile.
func TestDeleteWhileCreating(t *testing.T) {
	self, err := state.ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	c := &state.Container{ID: "c1", Saved: state.Creating, Creator: self}
	d, err := state.Create(root, c) // it is locked
	if err != nil {
		t.Fatal(err)
	}
	if out, err := husk(root, "list", "-f", "json"); err != nil || !strings.Contains(out, `"status":"creating"`) {
		t.Errorf("list: %q, %v", out, err)
	}
	_, err = husk(root, "delete", "c1")
	wantError(t, err, "cannot delete container c1 that is not stopped: creating")
	_, err = husk(root, "kill", "c1", "KILL")
	wantError(t, err, "cannot kill container c1: it is creating")

	deleted := make(chan error, 1)
	go func() {
		_, err := husk(root, "delete", "--force", "c1")
		deleted <- err
	}()
	select {
	case err := <-deleted:
		t.Fatalf("deleted while it was made: %v", err)
	case <-time.After(400 * time.Millisecond): // by then delete has looked again
	}
	cmd := startProcess(t)
	if c.Supervisor, err = state.ProcessOf(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	c.Saved = state.Created
	if err := d.Save(c); err != nil {
		t.Fatal(err)
	}
	path := d.Path
	d.Close() // as create does at its end
	if err := within(t, deleted); err != nil {
		t.Error(err)
	}
	wantGone(t, path, cmd)
}

// TestKillSupervisorThatIsStopped: kill KILL ends a supervisor that does not answer.
func TestKillSupervisorThatIsStopped(t *testing.T) {
	c := &state.Container{ID: "c1", Saved: state.Running}
	root, dir := made(t, c)
	cmd := startListening(t, dir)
	var err error
	if c.Supervisor, err = state.ProcessOf(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	d, err := state.Open(root, "c1")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Save(c); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); !c.Supervisor.Suspended(); { // only the parent is told by the kernel
		if time.Now().After(end) {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
			t.Fatalf("the process is not stopped: %s, %v", stat, err)
		}
	}
	if _, err := husk(root, "kill", "c1", "KILL"); err != nil {
		t.Error(err)
	}
	if c.Supervisor.Alive() {
		t.Error("the supervisor lives on")
	}
}
