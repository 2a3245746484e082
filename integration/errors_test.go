//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// want is one call and how it fails. "ID" in args stands for the container.
type want struct {
	args string
	code int
	text string // empty: the call succeeds
}

func (e *env) check(id string, calls []want) {
	e.t.Helper()
	for _, w := range calls {
		args := strings.Fields(strings.ReplaceAll(w.args, "ID", id))
		r := e.do(args...)
		if w.text == "" {
			r.is(w.code)
			continue
		}
		r.fails(w.code, strings.ReplaceAll(w.text, "ID", id))
	}
}

const missing = "container does not exist"

func TestErrorsNoContainer(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.check("nope", []want{
		{"state ID", 1, missing},
		{"start ID", 1, missing},
		{"kill ID KILL", 1, missing},
		{"kill --all ID KILL", 1, missing},
		{"delete ID", 1, missing},
		{"delete --force ID", 0, ""},
		{"exec ID true", 255, "exec failed: " + missing},
		{"ps ID", 1, missing},
		{"pause ID", 1, missing},
		{"resume ID", 1, missing},
		{"update --memory 1000000 ID", 1, missing},
		{"events --stats ID", 1, missing},
	})
}

func TestErrorsBadUsage(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.check("", []want{
		{"create", 1, `runc: "create" requires exactly 1 argument(s)`},
		{"start", 1, `runc: "start" requires exactly 1 argument(s)`},
		{"start a b", 1, `runc: "start" requires exactly 1 argument(s)`},
		{"state", 1, `runc: "state" requires exactly 1 argument(s)`},
		{"delete", 1, `runc: "delete" requires exactly 1 argument(s)`},
		{"pause", 1, `runc: "pause" requires exactly 1 argument(s)`},
		{"resume", 1, `runc: "resume" requires exactly 1 argument(s)`},
		{"kill", 1, `runc: "kill" requires a minimum of 1 argument(s)`},
		{"create --nosuchflag a", 1, "flag provided but not defined: -nosuchflag"},
		{"nosuchcmd", 3, "No help topic for 'nosuchcmd'"},
	})
	bundle := e.bundle()
	for _, bad := range []string{"bad/id", "bad id", "a:b", ".", "..", "../../etc"} {
		e.do("create", "--bundle", bundle, bad).fails(1, "runc create failed: invalid container ID format")
	}
	for _, bad := range []string{"../../etc", "a/b"} {
		for _, verb := range []string{"state", "start", "delete"} {
			if r := e.do(verb, bad); r.code != 1 {
				t.Errorf("%s %s: exit code %d", verb, bad, r.code)
			}
		}
	}
}

// TestErrorsByState tries every verb in every state of one container.
func TestErrorsByState(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withArgs("sleep", "1000")))

	e.do("create", "--bundle", c.bundle, c.id).fails(1, "runc create failed: container with given ID already exists")
	e.do("run", "--bundle", c.bundle, c.id).fails(1, "runc run failed: container with given ID already exists")
	e.check(c.id, []want{
		{"exec ID true", 0, ""},
		{"pause ID", 0, ""},
		{"resume ID", 0, ""},
		{"resume ID", 1, "container not paused"},
		{"start ID", 0, ""},

		{"start ID", 1, "cannot start an already running container"},
		{"delete ID", 1, "cannot delete container ID that is not stopped: running"},
		{"resume ID", 1, "container not paused"},
		{"kill ID NOSUCH", 1, `unknown signal "NOSUCH"`},
		{"kill ID 999", 1, "unable to signal init: invalid argument"},
		{"pause ID", 0, ""},

		{"pause ID", 1, "container not running"},
		{"exec ID true", 255, "exec failed: cannot exec in a paused container (use --ignore-paused to override)"},
		{"start ID", 1, "cannot start a container in the paused state"},
		{"delete ID", 1, "cannot delete container ID that is not stopped: paused"},
		{"kill ID 0", 0, ""},
	})
	if got := c.status(); got != "paused" {
		t.Errorf("state after pause: %s", got)
	}
	e.check(c.id, []want{
		{"resume ID", 0, ""},
		{"kill ID SIGKILL", 0, ""},
	})
	c.exits(137)
	e.check(c.id, []want{
		{"start ID", 1, "cannot start a container that has stopped"},
		{"exec ID true", 255, "exec failed: cannot exec in a stopped container"},
		{"kill ID KILL", 1, "container not running"},
		{"kill ID 0", 1, "container not running"},
		{"kill --all ID KILL", 0, ""},
		{"pause ID", 1, "container not running"},
		{"resume ID", 1, "container not paused"},
		{"update --memory 100000000 ID", 1, "container not running"},
		{"events --stats ID", 1, "container with id ID is not running"},
	})
	if got := strings.TrimSpace(e.ok("ps", "--format", "json", c.id)); got != "null" {
		t.Errorf("ps of a stopped container: %q, want null", got)
	}
	e.do("create", "--bundle", c.bundle, c.id).fails(1, "runc create failed: container with given ID already exists")
	e.check(c.id, []want{
		{"delete ID", 0, ""},
		{"delete ID", 1, missing},
	})
}

const startFailed = "unable to start container process: "

// TestCreateErrors: a create that fails leaves nothing, which the leak check tests, and
// destroys nothing: the file in the rootfs still exists.
func TestCreateErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		option specOption
		text   string // BUNDLE stands for the bundle's directory
		flags  []string
	}{
		{name: "missing binary", option: withArgs("/no/such"), text: startFailed + `exec: "/no/such": stat /no/such: no such file or directory`},
		{name: "not in PATH", option: withArgs("nosuch"), text: startFailed + `exec: "nosuch": executable file not found in $PATH`},
		{name: "not executable", option: withArgs("/etc/passwd"), text: startFailed + `exec: "/etc/passwd": permission denied`},
		{name: "no rootfs", option: func(s *specs.Spec) { s.Root.Path = "nosuchroot" }, text: "invalid rootfs: stat BUNDLE/nosuchroot: no such file or directory"},
		{
			name: "cwd is a file", option: func(s *specs.Spec) { s.Process.Cwd = "/etc/passwd" },
			text: startFailed + "error during container init: mkdir /etc/passwd: not a directory",
		},
		{
			name: "missing bind source", option: withBind("/nosuchsrc", "/x"),
			text: startFailed + `error during container init: error mounting "/nosuchsrc" to rootfs at "/x": stat /nosuchsrc: no such file or directory`,
		},
		{name: "terminal without socket", option: withTerminal(), text: "cannot allocate tty if runc will detach without setting console socket"},
		{
			name: "socket without terminal", option: withArgs("true"), flags: []string{"--console-socket", "/nosuch"},
			text: "cannot use console socket if runc will not detach or allocate tty",
		},
		{
			name: "no such socket", option: withTerminal(), flags: []string{"--console-socket", "/nosuch.sock"},
			text: "dial unix /nosuch.sock: connect: no such file or directory",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			bundle := e.bundle(c.option)
			volume := filepath.Join(e.mkdir("volume"), "precious")
			writeFile(t, volume, "volume")
			writeFile(t, filepath.Join(bundle, "rootfs/precious"), "rootfs")
			id, pidFile := e.id(), e.path("pid")
			args := append([]string{"create", "--bundle", bundle, "--pid-file", pidFile}, c.flags...)
			e.do(append(args, id)...).fails(1, "runc create failed: "+strings.ReplaceAll(c.text, "BUNDLE", bundle))
			e.do("state", id).fails(1, missing)
			if _, err := os.Stat(pidFile); err == nil {
				t.Error("a failed create has left a pid file")
			}
			if readFile(t, filepath.Join(bundle, "rootfs/precious")) != "rootfs" || readFile(t, volume) != "volume" {
				t.Error("a failed create has changed files")
			}
		})
	}
}

func TestRunErrors(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withArgs("/etc/passwd"))
	e.do("run", "--bundle", bundle, e.id()).fails(1, `runc run failed: unable to start container process: exec: "/etc/passwd": permission denied`)
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.do("create", "--bundle", e.mkdir("empty"), e.id()).fails(1, "runc create failed: JSON specification file config.json not found")

	broken := e.bundle()
	writeFile(t, filepath.Join(broken, "config.json"), "{bad")
	e.do("create", "--bundle", broken, e.id()).fails(1, "runc create failed: invalid character 'b' looking for beginning of object key string")

	r := e.do("create", "--bundle", "/no/such/bundle", e.id()).is(1)
	if !strings.Contains(r.stderr, "no such file or directory") {
		t.Errorf("missing bundle: %q", r.stderr)
	}
}

// TestOddConfigs: odd but valid configurations give one clear error line or a working
// container, never a crash, and leave nothing.
func TestOddConfigs(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]string{
		"empty object":    `{}`,
		"null":            `null`,
		"array":           `[]`,
		"wrong types":     `{"ociVersion": 1, "process": "x"}`,
		"no process":      `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"linux":{}}`,
		"no root":         `{"ociVersion":"1.0.2","process":{"args":["true"],"cwd":"/"},"linux":{}}`,
		"no linux":        `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["true"],"cwd":"/"}}`,
		"no args":         `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":[],"cwd":"/"},"linux":{"namespaces":[{"type":"mount"},{"type":"network"},{"type":"pid"},{"type":"ipc"}]}}`,
		"empty arg":       `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":[""],"cwd":"/"},"linux":{"namespaces":[{"type":"mount"},{"type":"network"},{"type":"pid"},{"type":"ipc"}]}}`,
		"relative cwd":    `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["true"],"cwd":"tmp"},"linux":{"namespaces":[{"type":"mount"},{"type":"network"},{"type":"pid"},{"type":"ipc"}]}}`,
		"unknown ns":      `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["true"],"cwd":"/"},"linux":{"namespaces":[{"type":"nosuch"}]}}`,
		"repeated ns":     `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["true"],"cwd":"/"},"linux":{"namespaces":[{"type":"mount"},{"type":"mount"},{"type":"network"},{"type":"pid"},{"type":"ipc"}]}}`,
		"missing ns path": `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["true"],"cwd":"/"},"linux":{"namespaces":[{"type":"mount"},{"type":"network","path":"/no/such"}]}}`,
		"root is a file":  `{"ociVersion":"1.0.2","root":{"path":"rootfs/etc/passwd"},"process":{"args":["true"],"cwd":"/"},"linux":{"namespaces":[{"type":"mount"},{"type":"network"},{"type":"pid"},{"type":"ipc"}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if runtimeName == "runc" && (name == "null" || name == "no process" || name == "no linux" || name == "empty object" || name == "no args") {
				t.Skip("runc 1.1.5 dereferences nil or lets it pass here; husk must not")
			}
			e := newEnv(t)
			bundle, id := e.bundle(), e.id()
			writeFile(t, filepath.Join(bundle, "config.json"), config)
			r := e.do("run", "--bundle", bundle, id)
			if r.code == 0 {
				t.Errorf("exit code 0 for %s", config)
			}
			if strings.Contains(r.stderr, "panic") || strings.Contains(r.stderr, "goroutine ") {
				t.Errorf("crashed: %s", r.stderr)
			}
			if isVM {
				r.oneLogLine(strings.TrimSpace(r.stderr))
			}
			e.do("state", id).fails(1, missing)
		})
	}
}
