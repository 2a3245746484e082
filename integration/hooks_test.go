//go:build integration

package integration

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// hook returns a hook that writes the state it gets, and what it sees of the pid, to a file.
func hook(dir, name string) specs.Hook {
	return specs.Hook{
		Path: "/bin/sh",
		Args: []string{"sh", "-c", `cat > "$0/$1.json"; pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$0/$1.json")
			readlink /proc/$pid/ns/net > "$0/$1.net"; readlink /proc/self/ns/mnt > "$0/$1.mnt"; echo "$MARK" > "$0/$1.env"; echo $1 >> "$0/order"`, dir, name},
		Env: []string{"PATH=/usr/bin:/bin", "MARK=from-config"},
	}
}

func TestHooks(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	dir := e.mkdir("hooks")
	bundle := e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{
			Prestart:      []specs.Hook{hook(dir, "prestart")}, //nolint:staticcheck // Docker before 28 wires the network in it
			CreateRuntime: []specs.Hook{hook(dir, "createRuntime")},
			Poststart:     []specs.Hook{hook(dir, "poststart")},
			Poststop:      []specs.Hook{hook(dir, "poststop")},
		}
		s.Annotations = map[string]string{"key": "value"}
	})
	c := e.create(bundle)
	check := func(name, wantStatus string) {
		t.Helper()
		var s status
		mustJSON(t, readFile(t, filepath.Join(dir, name+".json")), &s)
		if s.ID != c.id || s.Bundle != bundle || s.Status != wantStatus || !maps.Equal(s.Annotations, map[string]string{"key": "value"}) {
			t.Errorf("%s: state on stdin: %+v, want status %s", name, s, wantStatus)
		}
		if name != "poststop" {
			if s.PID != c.pid {
				t.Errorf("%s: pid %d, want %d", name, s.PID, c.pid)
			}
			if got := strings.TrimSpace(readFile(t, filepath.Join(dir, name+".net"))); got != nsOf(t, c.pid, "net") {
				t.Errorf("%s: network namespace of the pid: %q", name, got)
			}
		}
		if got := strings.TrimSpace(readFile(t, filepath.Join(dir, name+".mnt"))); got != nsOf(t, os.Getpid(), "mnt") {
			t.Errorf("%s: not run in the runtime's mount namespace", name)
		}
		if got := readFile(t, filepath.Join(dir, name+".env")); got != "from-config\n" {
			t.Errorf("%s: env %q", name, got)
		}
	}
	// runc says creating and crun created. The validation suite expects created.
	creating := "creating"
	if isVM {
		creating = "created"
	}
	check("prestart", creating)
	check("createRuntime", creating)
	if _, err := os.Stat(filepath.Join(dir, "poststart.json")); err == nil && isVM { // runc 1.1 runs it in create
		t.Error("poststart has run before start")
	}
	e.ok("start", c.id)
	if isVM {
		check("poststart", "running")
	}
	e.ok("kill", c.id, "KILL")
	c.exits(137)
	e.ok("delete", c.id)
	check("poststop", "stopped")
	if got := strings.Fields(readFile(t, filepath.Join(dir, "order"))); strings.Join(got, " ") != "prestart createRuntime poststart poststop" {
		t.Errorf("order: %v", got)
	}
}

func TestHookFails(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"prestart", "createRuntime"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			stopped := e.path("stopped")
			bad := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo hook says no >&2; exit 3"}}}
			bundle := e.bundle(withArgs("true"), func(s *specs.Spec) {
				s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/touch", Args: []string{"touch", stopped}}}}
				if kind == "prestart" {
					s.Hooks.Prestart = bad //nolint:staticcheck // see TestHooks
				} else {
					s.Hooks.CreateRuntime = bad
				}
			})
			writeFile(t, filepath.Join(bundle, "rootfs/precious"), "kept")
			id := e.id()
			r := e.do("create", "--bundle", bundle, id).is(1)
			if !strings.Contains(r.stderr, "hook") || !strings.Contains(r.stderr, "exit status 3") {
				t.Errorf("stderr %q", r.stderr)
			}
			r.oneLogLine(strings.TrimSpace(r.stderr))
			e.do("state", id).fails(1, missing)
			if readFile(t, filepath.Join(bundle, "rootfs/precious")) != "kept" {
				t.Error("the rootfs has changed")
			}
		})
	}
}

// TestLateHookFails: if a poststart hook fails the container ends; if a poststop hook fails
// there is a warning.
func TestLateHookFails(t *testing.T) {
	needVM(t) // runc 1.1 runs poststart hooks in create, and stops at the first poststop hook that fails
	t.Parallel()
	e := newEnv(t)
	bad := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "exit 3"}}
	stopped := e.path("stopped")
	touch := func(path string) specs.Hook { return specs.Hook{Path: "/bin/touch", Args: []string{"touch", path}} }
	bundle := e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{Poststart: []specs.Hook{bad}, Poststop: []specs.Hook{bad, touch(stopped)}}
	})
	c := e.create(bundle)
	if r := e.do("start", c.id).is(1); !strings.Contains(r.stderr, "error running poststart hook #0: exit status 3") {
		t.Errorf("start fails with %q", r.stderr)
	}
	if c.status() != "stopped" {
		t.Errorf("the container is %s", c.status())
	}
	c.stop()
	if _, err := os.Stat(stopped); err != nil {
		t.Error(err)
	}
	id := e.id()
	if r := e.do("run", "--bundle", bundle, id).is(1); !strings.Contains(r.stderr, "error running poststart hook #0: exit status 3") {
		t.Errorf("run fails with %q", r.stderr)
	}
	e.do("state", id).fails(1, missing)
}

func TestHookTimeout(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	timeout := 1
	began := time.Now()
	id := e.id()
	r := e.do("create", "--bundle", e.bundle(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "300"}, Timeout: &timeout}}}
	}), id).is(1)
	if took := time.Since(began); took > testTimeout/2 {
		t.Errorf("a hook with a timeout of 1 s held create for %v", took)
	}
	if !strings.Contains(r.stderr, "hook") {
		t.Errorf("stderr %q", r.stderr)
	}
	e.do("state", id).fails(1, missing)
}

func TestHookMissing(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id := e.id()
	r := e.do("create", "--bundle", e.bundle(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/no/such/hook"}}}
	}), id).is(1)
	if !strings.Contains(r.stderr, "/no/such/hook") {
		t.Errorf("stderr %q", r.stderr)
	}
	e.do("state", id).fails(1, missing)
}
