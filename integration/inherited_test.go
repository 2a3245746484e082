//go:build integration

package integration

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestRlimitsOfCaller: a process whose spec sets no limits has the caller's, as a child of the
// runtime would.
func TestRlimitsOfCaller(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	via := []string{"sh", "-c", `ulimit -Sn 700 && ulimit -Hn 3000 && ulimit -c 5 && exec "$@"`, "sh"}
	const report = "echo hard $(ulimit -Hn) soft $(ulimit -Sn) core $(ulimit -c)"
	check := func(out string) {
		t.Helper()
		want := "hard 3000 soft 700 core 5\n"
		if !isVM {
			// Debian 12's runc passes on the soft limit that Go has raised.
			want, out = "hard 3000 core 5\n", out[:strings.Index(out, " soft")]+out[strings.Index(out, " core"):]
		}
		if out != want {
			t.Errorf("got %q, want %q", out, want)
		}
	}
	check(e.start(call{via: via}, "run", "--bundle", e.bundle(withScript(report)), e.id()).wait().is(0).stdout)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	check(e.start(call{via: via}, "exec", c.id, "sh", "-c", report).wait().is(0).stdout)
	c.stop()
}

// TestSysctlsOfHost: settings that an administrator has made on the host for containers apply
// in them.
func TestSysctlsOfHost(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	names := []string{
		"fs/aio-max-nr", "fs/file-max", "fs/inotify/max_user_instances", "fs/inotify/max_user_watches",
		"fs/nr_open", "kernel/pid_max", "kernel/threads-max", "vm/max_map_count",
	}
	got := strings.Fields(e.ok("run", "--bundle", e.bundle(withScript("cd /proc/sys && cat "+strings.Join(names, " "))), e.id()))
	if len(got) != len(names) {
		t.Fatalf("got %q", got)
	}
	for i, name := range names {
		want := strings.TrimSpace(readFile(t, filepath.Join("/proc/sys", name)))
		has, err := strconv.ParseUint(got[i], 10, 64)
		least, werr := strconv.ParseUint(want, 10, 64)
		if err != nil || werr != nil || has < least {
			t.Errorf("%s: %s in the container, %s on the host", name, got[i], want)
		}
	}
}
