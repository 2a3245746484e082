package state

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func example(id string) *Container {
	return &Container{
		OCIVersion: specs.Version, ID: id, Bundle: "/bundle", Rootfs: "/bundle/rootfs",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Owner: "root",
		Annotations: map[string]string{"a": "b"}, Saved: Created,
		Supervisor: Process{PID: 7, StartTime: 8},
		Network:    &Network{HostPath: "/run/netns/x", TapIndexes: []int{3}},
	}
}

func create(t *testing.T, root, id string) *Dir {
	t.Helper()
	d, err := Create(root, example(id))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestValidID(t *testing.T) {
	for _, id := range []string{"a", "A-b_c.d+e", "0", "..a", ".a", strings.Repeat("x", 1024)} {
		if err := ValidID(id); err != nil {
			t.Errorf("%.20q: %v", id, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "../a", "a b", "a\n", "a\x00", "ä", "a:b", strings.Repeat("x", 1025)} {
		if err := ValidID(id); !errors.Is(err, ErrInvalidID) {
			t.Errorf("%.20q: error %v, want %v", id, err, ErrInvalidID)
		}
		if _, err := Open(t.TempDir(), id); !errors.Is(err, ErrInvalidID) {
			t.Errorf("open %.20q: error %v, want %v", id, err, ErrInvalidID)
		}
		if _, err := Create(t.TempDir(), &Container{ID: id}); !errors.Is(err, ErrInvalidID) {
			t.Errorf("create %.20q: error %v, want %v", id, err, ErrInvalidID)
		}
	}
}

func TestCreateLoadSaveRemove(t *testing.T) {
	root := filepath.Join(t.TempDir(), "made", "by", "create")
	d := create(t, root, "c1")
	got, err := Find(root, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if want := example("c1"); !reflect.DeepEqual(got, want) {
		t.Errorf("loaded %+v, want %+v", got, want)
	}

	got.Saved = Running
	if err := d.Save(got); err != nil {
		t.Fatal(err)
	}
	if again, err := d.Load(); err != nil || again.Saved != Running {
		t.Errorf("loaded %v, %v after save, want running", again, err)
	}
	if slices.Contains(names(t, d.Path), stateFileTemp) {
		t.Error("save left its temporary file")
	}

	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	if left := names(t, root); len(left) > 0 {
		t.Errorf("remove left %v", left)
	}
	if _, err := Find(root, "c1"); !errors.Is(err, ErrNotExist) {
		t.Errorf("find after remove: %v, want %v", err, ErrNotExist)
	}
	// Engines may call delete twice, from two processes.
	if err := d.Remove(); err != nil {
		t.Errorf("second remove: %v", err)
	}
}

func TestCreateTaken(t *testing.T) {
	root := t.TempDir()
	create(t, root, "c1")
	second := example("c1")
	second.Owner = "somebody else"
	if _, err := Create(root, second); !errors.Is(err, ErrExist) {
		t.Fatalf("create: %v, want %v", err, ErrExist)
	}
	if c, err := Find(root, "c1"); err != nil || c.Owner != "root" {
		t.Errorf("the first container is now %+v, %v", c, err)
	}
	if left := names(t, root); !slices.Equal(left, []string{"c1"}) {
		t.Errorf("a refused create left %v", left)
	}
}

// TestCreateRace: one create succeeds, and the others get ErrExist and leave nothing.
func TestCreateRace(t *testing.T) {
	root := t.TempDir()
	const racers = 16
	var won, lost int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range racers {
		wg.Go(func() {
			d, err := Create(root, example("c1"))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won++
				d.Close()
			case errors.Is(err, ErrExist):
				lost++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 || lost != racers-1 {
		t.Errorf("%d created it and %d were refused, want 1 and %d", won, lost, racers-1)
	}
	if left := names(t, root); !slices.Equal(left, []string{"c1"}) {
		t.Errorf("the race left %v", left)
	}
}

func TestOtherRuntimesState(t *testing.T) {
	root := t.TempDir()
	runcs := filepath.Join(root, "r1")
	if err := os.Mkdir(runcs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(runcs, "state.json"), []byte(`{"id":"r1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(root, "r1"); !errors.Is(err, ErrNotExist) {
		t.Errorf("find runc's container: %v, want %v", err, ErrNotExist)
	}
	create(t, root, "c2")
	create(t, root, "c1")
	if err := os.Mkdir(filepath.Join(root, "damaged"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "damaged", stateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, broken, err := List(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(broken) != 1 || !strings.Contains(broken[0].Error(), "damaged") {
		t.Errorf("damaged containers: %v, want the one", broken)
	}
	var ids []string
	for _, c := range all {
		ids = append(ids, c.ID)
	}
	if !slices.Equal(ids, []string{"c1", "c2"}) {
		t.Errorf("listed %v, want c1 and c2", ids)
	}
	if none, _, err := List(filepath.Join(root, "nosuch")); err != nil || none != nil {
		t.Errorf("list without root: %v, %v", none, err)
	}
}

// TestRemoveSparesOthers: files that husk did not make stay, and so does their directory.
func TestRemoveSparesOthers(t *testing.T) {
	d := create(t, t.TempDir(), "c1")
	file := filepath.Join(d.Path, ShareDir, "users-file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(); err == nil {
		t.Error("a directory with something else's file in it was removed")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

// TestWithoutPath: the supervisor can save after it has left the host's mount namespace.
func TestWithoutPath(t *testing.T) {
	root := t.TempDir()
	d := create(t, root, "c1")
	moved := filepath.Join(root, "moved")
	if err := os.Rename(d.Path, moved); err != nil {
		t.Fatal(err)
	}
	c := example("c1")
	c.Saved = Stopped
	if err := d.Save(c); err != nil {
		t.Fatal(err)
	}
	there, err := open(moved)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if got, err := there.Load(); err != nil || got.Saved != Stopped {
		t.Errorf("loaded %+v, %v", got, err)
	}
	log, err := d.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	if _, err := os.Stat(filepath.Join(moved, LogFile)); err != nil {
		t.Error(err)
	}
}

func TestFDPathIsShort(t *testing.T) {
	root := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	d := create(t, root, strings.Repeat("c", 120))
	addr := &net.UnixAddr{Net: "unix", Name: d.FDPath(ControlSocket)}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := os.Stat(filepath.Join(d.Path, ControlSocket)); err != nil {
		t.Error(err)
	}
	conn, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestLock(t *testing.T) {
	root := t.TempDir()
	creator := create(t, root, "c1") // it holds the lock
	other, err := Open(root, "c1")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := other.Lock(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("lock what another holds: %v, want the deadline", err)
	}

	third, err := Open(root, "c1")
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	got := make(chan error, 1)
	go func() { got <- third.Lock(deadline(t)) }()
	// The wait that was given up is still pending and may get the lock before or after this.
	// Closing releases it.
	creator.Close()
	other.Close()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// TestLockAfterTimeout: after a wait was given up the directory can still be used.
func TestLockAfterTimeout(t *testing.T) {
	root := t.TempDir()
	creator := create(t, root, "c1") // it holds the lock
	other, err := Open(root, "c1")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for range 3 {
		short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := other.Lock(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("lock what another holds: %v, want the deadline", err)
		}
		cancel()
	}
	creator.Unlock()
	if err := other.Lock(deadline(t)); err != nil {
		t.Errorf("lock after waits that were given up: %v", err)
	}
	if err := creator.tryLock(); err == nil {
		t.Error("two hold the lock")
	}
	other.Unlock()
	if err := creator.Lock(deadline(t)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(other.FDPath(".")); err != nil {
		t.Errorf("the directory cannot be named any more: %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, content := range map[string][]byte{
		"no json":     []byte("{"),
		"nothing":     nil,
		"no id":       []byte(`{"bundle":"/b"}`),
		"a path":      []byte(`{"id":"../../etc"}`),
		"a wrong pid": []byte(`{"id":"c1","supervisor":{"pid":"1"}}`),
		"too large":   bytes.Repeat([]byte(" "), maxStateFile+1),
	} {
		d := create(t, t.TempDir(), "c1")
		if err := os.WriteFile(filepath.Join(d.Path, stateFile), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := d.Load(); err == nil {
			t.Errorf("%s: loaded %+v", name, c)
		} else if !strings.HasPrefix(err.Error(), "load state: ") {
			t.Errorf("%s: error %q does not say what failed", name, err)
		}
	}
}

func TestOCIState(t *testing.T) {
	c := example("c1")
	if s := c.OCI(Running); s.Pid != 7 || s.Status != specs.StateRunning || s.Bundle != "/bundle" || s.ID != "c1" {
		t.Errorf("state of a running container: %+v", s)
	}
	if s := c.OCI(Stopped); s.Pid != 0 || s.Status != specs.StateStopped {
		t.Errorf("state of a stopped container: %+v", s)
	}
}

func TestStatusNeedsSupervisor(t *testing.T) {
	c := example("c1")
	self, err := ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	c.Supervisor, c.Saved = self, Running
	if s := c.Status(); s != Running {
		t.Errorf("status %s, want running", s)
	}
	c.Supervisor.StartTime++
	if s := c.Status(); s != Stopped {
		t.Errorf("status %s without its supervisor, want stopped", s)
	}
}

func FuzzDecode(f *testing.F) {
	b, err := json.Marshal(example("c1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"id":"c1","hooks":{"poststop":[{"path":"/bin/true"}]}}`))
	f.Add([]byte(`{"id":"..","created":"yesterday"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decode(b)
		if err != nil {
			return
		}
		if err := ValidID(c.ID); err != nil {
			t.Errorf("%q: id %q: %v", b, c.ID, err)
		}
		// Writing and reading again must not change it.
		first, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decode(first)
		if err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}
		second, err := json.Marshal(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Errorf("%s became %s, %v", first, second, err)
		}
	})
}

func ExampleError() {
	fmt.Println(Allowed(Start, "c1", Running))
	// Output: cannot start an already running container
}

// TestSweep: Sweep removes what a killed create has left, and leaves what a running create is
// filling.
func TestSweep(t *testing.T) {
	root := t.TempDir()
	left, err := os.MkdirTemp(root, creatingPrefix)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(left, ShareDir), 0o700); err != nil {
		t.Fatal(err)
	}
	deleted, err := os.MkdirTemp(root, deletingPrefix)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(deleted, stateFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	busy, err := os.MkdirTemp(root, creatingPrefix)
	if err != nil {
		t.Fatal(err)
	}
	startHolder(t, busy)
	d, err := Create(root, &Container{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	for _, path := range []string{left, deleted} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("what a killed call has left is still there: %s", path)
		}
	}
	if _, err := os.Lstat(busy); err != nil {
		t.Errorf("a create that runs has lost its directory: %v", err)
	}
}

// TestSweepDisturbsNoCreate: each of many concurrent creates gets its directory.
func TestSweepDisturbsNoCreate(t *testing.T) {
	root := t.TempDir()
	done := make(chan struct{})
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				Sweep(root)
			}
		}
	})
	for i := range 200 {
		id := fmt.Sprintf("c%d", i)
		d, err := Create(root, &Container{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Load(); err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
	close(done)
	sweeper.Wait()
	if all, broken, err := List(root); len(all) != 200 || len(broken) > 0 || err != nil {
		t.Errorf("%d containers, %v, %v", len(all), broken, err)
	}
}
