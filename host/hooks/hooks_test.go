package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// hook returns a hook that runs a shell script.
func hook(script string, env ...string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"hook-sh", "-c", script}, Env: env}
}

func hookState(t *testing.T) *specs.State {
	t.Helper()
	return &specs.State{
		Version: specs.Version, ID: "c1", Status: specs.StateCreated, Pid: 7, Bundle: t.TempDir(),
		Annotations: map[string]string{"a": "b"},
	}
}

// runIn runs hooks in the bundle, as create does.
func runIn(ctx context.Context, hooks []specs.Hook, kind string, st *specs.State) error {
	return Run(ctx, hooks, kind, st, st.Bundle)
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestAtCreate(t *testing.T) {
	h := []specs.Hook{hook("true")}
	for _, c := range []struct {
		hooks *specs.Hooks
		want  bool
	}{
		{nil, false},
		{&specs.Hooks{StartContainer: h, Poststart: h, Poststop: h}, false},
		{&specs.Hooks{Prestart: h}, true}, //nolint:staticcheck // deprecated, and used by Docker
		{&specs.Hooks{CreateRuntime: h}, true},
		{&specs.Hooks{CreateContainer: h}, true},
	} {
		if got := AtCreate(c.hooks); got != c.want {
			t.Errorf("%+v: %t", c.hooks, got)
		}
	}
}

func TestOf(t *testing.T) {
	if h := Of(nil); h.Poststart != nil || h.Poststop != nil {
		t.Errorf("no hooks are %+v", h)
	}
	if h := Of(&specs.Hooks{Poststop: []specs.Hook{hook("true")}}); len(h.Poststop) != 1 {
		t.Errorf("lost a hook: %+v", h)
	}
}

// TestHookSurroundings: a hook gets the state on stdin, the bundle as working directory, only
// its own environment, and its own argv[0].
func TestHookSurroundings(t *testing.T) {
	t.Setenv("HUSK_SECRET", "of the engine")
	st := hookState(t)
	err := runIn(t.Context(), []specs.Hook{
		hook(`cat > stdin; pwd > cwd; env > env; echo "$0" > arg0`, "A=1", "B=two words"),
	}, "prestart", st)
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(st.Bundle, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var got specs.State
	if err := json.Unmarshal([]byte(read("stdin")), &got); err != nil {
		t.Fatal(err)
	}
	if got.ID != st.ID || got.Pid != st.Pid || got.Status != st.Status || got.Bundle != st.Bundle || got.Annotations["a"] != "b" {
		t.Errorf("stdin was %+v, want %+v", got, st)
	}
	if cwd := read("cwd"); cwd != st.Bundle+"\n" {
		t.Errorf("ran in %q, want %s", cwd, st.Bundle)
	}
	env := read("env")
	if !strings.Contains(env, "A=1\n") || !strings.Contains(env, "B=two words\n") || strings.Contains(env, "HUSK_SECRET") {
		t.Errorf("environment was %q", env)
	}
	if arg0 := read("arg0"); arg0 != "hook-sh\n" {
		t.Errorf("argv[0] was %q", arg0)
	}
}

// TestHookWithoutEnv: a hook without an environment does not get husk's.
func TestHookWithoutEnv(t *testing.T) {
	t.Setenv("HUSK_SECRET", "of the engine")
	st := hookState(t)
	if err := runIn(t.Context(), []specs.Hook{hook(`echo "$HUSK_SECRET" > secret`)}, "prestart", st); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(st.Bundle, "secret")); err != nil || string(b) != "\n" {
		t.Errorf("the hook saw %q, %v", b, err)
	}
}

// TestHookUnreadStdin: a hook need not read its state, however long the state is.
func TestHookUnreadStdin(t *testing.T) {
	st := hookState(t)
	st.Annotations["long"] = strings.Repeat("x", 1<<20)
	if err := runIn(t.Context(), []specs.Hook{hook("exit 0")}, "prestart", st); err != nil {
		t.Error(err)
	}
}

func TestHooksStopAtFirstFailure(t *testing.T) {
	st := hookState(t)
	err := runIn(t.Context(), []specs.Hook{
		hook("echo 0 >> ran"),
		hook("echo 1 >> ran; echo to stdout; echo to stderr >&2; exit 3"),
		hook("echo 2 >> ran"),
	}, "createRuntime", st)
	wantError(t, err, "error running createRuntime hook #1: exit status 3, stdout: to stdout\n, stderr: to stderr\n")
	if b, err := os.ReadFile(filepath.Join(st.Bundle, "ran")); err != nil || string(b) != "0\n1\n" {
		t.Errorf("ran %q, %v; want the first two", b, err)
	}
}

func TestRunAllGoesOn(t *testing.T) {
	st := hookState(t)
	var warned []string
	RunAll(t.Context(), []specs.Hook{hook("exit 3"), hook("echo 1 >> ran"), hook("exit 4")}, "poststop", st, st.Bundle,
		func(err error) { warned = append(warned, err.Error()) })
	want := []string{
		"error running poststop hook #0: exit status 3, stdout: , stderr: ",
		"error running poststop hook #2: exit status 4, stdout: , stderr: ",
	}
	if !slices.Equal(warned, want) {
		t.Errorf("warnings %q, want %q", warned, want)
	}
	if b, err := os.ReadFile(filepath.Join(st.Bundle, "ran")); err != nil || string(b) != "1\n" {
		t.Errorf("ran %q, %v; want the second", b, err)
	}
}

func TestHookMissing(t *testing.T) {
	err := runIn(t.Context(), []specs.Hook{{Path: "/no/such"}}, "poststart", hookState(t))
	if err == nil || !strings.HasPrefix(err.Error(), "error running poststart hook #0: fork/exec /no/such: no such file or directory") {
		t.Errorf("error %v", err)
	}
}

func TestHookTimeout(t *testing.T) {
	seconds := 1
	h := hook("exec sleep 300")
	h.Timeout = &seconds
	began := time.Now()
	err := runIn(t.Context(), []specs.Hook{h}, "prestart", hookState(t))
	wantError(t, err, "error running prestart hook #0: hook ran past specified timeout of 1.0s")
	if took := time.Since(began); took < time.Second || took > 20*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestHookCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runIn(ctx, []specs.Hook{hook("exec sleep 300")}, "prestart", hookState(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

// TestHookLeavesChild: husk does not wait for a daemon that keeps the hook's stdout open.
func TestHookLeavesChild(t *testing.T) {
	st := hookState(t)
	began := time.Now()
	if err := runIn(t.Context(), []specs.Hook{hook("sleep 300 & echo $! > pid")}, "prestart", st); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	b, err := os.ReadFile(filepath.Join(st.Bundle, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil || pid <= 1 {
		t.Fatalf("pid %q: %v", b, err)
	}
	child, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Kill(); err != nil {
		t.Errorf("the daemon did not outlive its hook: %v", err)
	}
}
