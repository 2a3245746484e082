package template

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func kind() Kind {
	return Kind{Husk: "h", Guest: "g", VMM: "v", Accel: "tcg", CPU: "c", MemoryMiB: 1024, VCPUs: 2, NICs: 1}
}

// boots counts its calls in n and writes two files as a VM would.
func boots(n *atomic.Int32) func(context.Context, string, string) error {
	return func(_ context.Context, ram, devices string) error {
		n.Add(1)
		if err := os.WriteFile(ram, []byte("ram"), 0o600); err != nil {
			return err
		}
		return os.WriteFile(devices, []byte("devices"), 0o600)
	}
}

func newStore(t *testing.T) Store {
	t.Helper()
	return Store{Dir: filepath.Join(t.TempDir(), "templates")}
}

func TestMakeOnceAndFind(t *testing.T) {
	s := newStore(t)
	if _, err := s.Find(kind()); !errors.Is(err, ErrNone) {
		t.Fatalf("found in an empty store: %v", err)
	}
	var n atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Make(t.Context(), kind(), boots(&n)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n.Load() != 1 {
		t.Errorf("booted %d times", n.Load())
	}
	got, err := s.Find(kind())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(got.Devices); err != nil || string(b) != "devices" {
		t.Errorf("device state %q, %v", b, err)
	}
	other := kind()
	other.VCPUs = 3
	if _, err := s.Find(other); !errors.Is(err, ErrNone) {
		t.Errorf("another kind was found: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir, ".making-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if info, err := os.Stat(s.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("store's mode %v, %v", info.Mode(), err)
	}
}

// TestDamage: whatever happens to a template's files, it is removed and made again.
func TestDamage(t *testing.T) {
	damages := map[string]func(dir string) error{
		"ram changed": func(dir string) error {
			return os.Chtimes(filepath.Join(dir, ramFile), time.Time{}, time.Now().Add(time.Second))
		},
		"ram changed, its time put back": func(dir string) error {
			path := filepath.Join(dir, ramFile)
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{'X'}, 0)
			return errors.Join(err, f.Close(), os.Chtimes(path, info.ModTime(), info.ModTime()))
		},
		"ram readable by others": func(dir string) error { return os.Chmod(filepath.Join(dir, ramFile), 0o644) },
		"ram is a link": func(dir string) error {
			path := filepath.Join(dir, ramFile)
			return errors.Join(os.Rename(path, path+".moved"), os.Symlink(path+".moved", path))
		},
		"ram is a directory": func(dir string) error {
			path := filepath.Join(dir, ramFile)
			return errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o700))
		},
		"devices are a fifo": func(dir string) error {
			path := filepath.Join(dir, devicesFile)
			return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600))
		},
		"no directory":     func(dir string) error { return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)) },
		"ram shorter":      func(dir string) error { return os.Truncate(filepath.Join(dir, ramFile), 1) },
		"ram gone":         func(dir string) error { return os.Remove(filepath.Join(dir, ramFile)) },
		"devices changed":  func(dir string) error { return os.WriteFile(filepath.Join(dir, devicesFile), []byte("DEVICES"), 0o600) },
		"devices gone":     func(dir string) error { return os.Remove(filepath.Join(dir, devicesFile)) },
		"description torn": func(dir string) error { return os.Truncate(filepath.Join(dir, descFile), 10) },
		"description gone": func(dir string) error { return os.Remove(filepath.Join(dir, descFile)) },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			var n atomic.Int32
			if _, err := s.Make(t.Context(), kind(), boots(&n)); err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(s.Dir, kind().Key())); err != nil {
				t.Fatal(err)
			}
			_, err := s.Find(kind())
			if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "discarded") {
				t.Fatalf("find: %v", err)
			}
			if _, err := s.Make(t.Context(), kind(), boots(&n)); err != nil || n.Load() != 2 {
				t.Errorf("make again: %v after %d boots", err, n.Load())
			}
		})
	}
}

func TestPrune(t *testing.T) {
	s := newStore(t)
	var n atomic.Int32
	old := kind()
	old.Husk = "old"
	for _, k := range []Kind{old, kind()} {
		if _, err := s.Make(t.Context(), k, boots(&n)); err != nil {
			t.Fatal(err)
		}
	}
	const maxAge = time.Hour
	longAgo := time.Now().Add(-2 * maxAge)
	if err := os.Chtimes(filepath.Join(s.Dir, old.Key(), descFile), longAgo, longAgo); err != nil {
		t.Fatal(err)
	}
	removed, err := s.Prune(maxAge)
	if err != nil || len(removed) != 1 || removed[0].Kind.Husk != "old" || removed[0].Bytes == 0 {
		t.Errorf("pruned %+v, %v", removed, err)
	}
	if _, err := s.Find(kind()); err != nil {
		t.Errorf("the one in use: %v", err)
	}
	if removed, err := s.Prune(0, "nosuchkey"); err == nil || len(removed) > 0 {
		t.Errorf("a key that no template has: removed %v, %v", removed, err)
	}
	if _, err := s.Make(t.Context(), old, boots(&n)); err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Prune(0, kind().Key()); err != nil || len(removed) != 1 || removed[0].Key != kind().Key() {
		t.Errorf("pruned %+v, %v of one key", removed, err)
	}
	if _, err := s.Find(old); err != nil {
		t.Errorf("the other: %v", err)
	}
	if _, err := s.Prune(0); err != nil {
		t.Fatal(err)
	}
	if left, err := s.List(); err != nil || len(left) != 0 {
		t.Errorf("left after pruning all: %v, %v", left, err)
	}
}

// TestLimits: making a template removes those beyond the limits, and what a killed maker has
// left.
func TestLimits(t *testing.T) {
	s := newStore(t)
	var n atomic.Int32
	kinds := make([]Kind, 3)
	for i := range kinds {
		kinds[i] = kind()
		kinds[i].VCPUs = i + 1
		if _, err := s.Make(t.Context(), kinds[i], boots(&n)); err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(time.Duration(i-10) * time.Minute)
		if err := os.Chtimes(filepath.Join(s.Dir, kinds[i].Key(), descFile), used, used); err != nil {
			t.Fatal(err)
		}
	}
	half := filepath.Join(s.Dir, makingPrefix+"killed")
	if err := errors.Join(os.Mkdir(half, 0o700), os.WriteFile(filepath.Join(half, ramFile), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	s.MaxBytes = all[0].Bytes * 2
	last := kind()
	last.VCPUs = 9
	if _, err := s.Make(t.Context(), last, boots(&n)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find(kinds[0]); !errors.Is(err, ErrNone) {
		t.Errorf("the one unused for longest is still there: %v", err)
	}
	if _, err := s.Find(kinds[2]); err != nil {
		t.Errorf("one used lately: %v", err)
	}
	if exists(half) {
		t.Error("the half-made one is still there")
	}
}

func TestBootFails(t *testing.T) {
	s := newStore(t)
	broken := errors.New("broken")
	_, err := s.Make(t.Context(), kind(), func(_ context.Context, ram, _ string) error {
		return errors.Join(os.WriteFile(ram, nil, 0o600), broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("make: %v", err)
	}
	var n atomic.Int32
	if _, err := s.Make(t.Context(), kind(), boots(&n)); err == nil || n.Load() != 0 {
		t.Errorf("it was tried again at once: %v", err)
	}
	s.Retry(kind().Key())
	if _, err := s.Make(t.Context(), kind(), boots(&n)); err != nil || n.Load() != 1 {
		t.Errorf("it was not tried again: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir, ".making-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestStoreOfOthers: a store that others may write to is refused, because its files become a
// kernel's memory.
func TestStoreOfOthers(t *testing.T) {
	s := newStore(t)
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	var n atomic.Int32
	if _, err := s.Make(t.Context(), kind(), boots(&n)); err == nil || n.Load() != 0 {
		t.Errorf("make in a store open to all: %v", err)
	}
}

func TestLockHasADeadline(t *testing.T) {
	s := newStore(t)
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	unlock, err := s.lock(t.Context(), kind().Key())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.lock(ctx, kind().Key()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("lock held by another: %v", err)
	}
}

func TestCPUIdentity(t *testing.T) {
	one := "processor\t: 0\nmodel name\t: A\nflags\t\t: x y\ncpu MHz\t\t: 1000\n\nprocessor\t: 1\nmodel name\t: B\n"
	a, err := cpuIdentity(one)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := cpuIdentity(strings.Replace(one, "1000", "2000", 1)); a != b {
		t.Error("the clock rate of the moment is no other CPU")
	}
	if b, _ := cpuIdentity(strings.Replace(one, "x y", "x", 1)); a == b {
		t.Error("other flags are another CPU")
	}
	if _, err := cpuIdentity("nonsense"); err == nil {
		t.Error("nonsense was taken")
	}
}
