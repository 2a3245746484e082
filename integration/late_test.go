//go:build integration

package integration

import (
	"io"
	"os"
	"strings"
	"testing"
)

// TestExecLateOutput: what other processes write to an exec'd process's output after it has
// ended arrives. In the foreground exec waits for the last of them; when exec is detached its
// pid ends with the process.
func TestExecLateOutput(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	c.exec("mkfifo", "/tmp/go", "/tmp/on").is(0)
	const late = "(read x </tmp/go; echo late; echo late >&2) & echo now; exit 3"
	proceed := func() {
		t.Helper()
		c.exec("sh", "-c", "echo x >/tmp/go").is(0)
	}

	t.Run("foreground", func(t *testing.T) {
		p := e.start(call{}, "exec", c.id, "sh", "-c", late)
		p.stdout.expect(t, "now\n")
		proceed()
		if r := p.wait().is(3); r.stdout != "now\nlate\n" || r.stderr != "late\n" {
			t.Errorf("stdout %q, stderr %q", r.stdout, r.stderr)
		}
	})
	t.Run("detached", func(t *testing.T) {
		pidFile := e.path("pid")
		p, exit := e.detach(pidFile, "exec", "--detach", "--pid-file", pidFile, c.id, "sh", "-c", late)
		if code := e.exitOf(exit); code != 3 {
			t.Errorf("exit code %d, want 3", code)
		}
		proceed()
		if r := p.wait(); r.stdout != "now\nlate\n" || r.stderr != "late\n" {
			t.Errorf("stdout %q, stderr %q", r.stdout, r.stderr)
		}
	})
	t.Run("to a file", func(t *testing.T) {
		// With a file nobody sees its end, so everything that the process has written must be
		// there when its pid ends.
		file, pidFile := e.path("out"), e.path("pid")
		out, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		p := e.start(call{stdout: out}, "exec", "--detach", "--pid-file", pidFile, c.id, "sh", "-c",
			"(read x </tmp/go; echo late) & seq 1 20000")
		out.Close()
		if code := p.code(); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		if code := e.exitOf(reap(readPID(t, pidFile))); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
		if text := readFile(t, file); !strings.HasSuffix(text, "\n20000\n") {
			t.Errorf("the file ends with %q", text[max(0, len(text)-20):])
		}
		proceed()
		eventually(t, "the late line is in the file", testTimeout, func() bool {
			return strings.HasSuffix(readFile(t, file), "\n20000\nlate\n")
		})
	})
	t.Run("much", func(t *testing.T) {
		const script = "seq 1 20000 | (read x </tmp/go; cat) &"
		p := e.start(call{}, "exec", c.id, "sh", "-c", script)
		proceed()
		if r := p.wait().is(0); strings.Count(r.stdout, "\n") != 20000 {
			t.Errorf("%d lines of 20000", strings.Count(r.stdout, "\n"))
		}
		pidFile := e.path("pid")
		p, exit := e.detach(pidFile, "exec", "--detach", "--pid-file", pidFile, c.id, "sh", "-c", script)
		e.exitOf(exit)
		proceed()
		if r := p.wait(); strings.Count(r.stdout, "\n") != 20000 {
			t.Errorf("detached: %d lines of 20000", strings.Count(r.stdout, "\n"))
		}
	})
	t.Run("reader that goes away", func(t *testing.T) {
		r, w := e.osPipe()
		pidFile := e.path("pid")
		p := e.start(call{stdout: w}, "exec", "--detach", "--pid-file", pidFile, c.id, "sh", "-c", "trap '' PIPE; (while echo x; do :; done; echo over >/tmp/on) 2>/dev/null & echo now")
		w.Close()
		if code := p.code(); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		e.exitOf(reap(readPID(t, pidFile)))
		if _, err := io.ReadFull(r, make([]byte, 100000)); err != nil { // far more than the process has written
			t.Error(err)
		}
		r.Close()
		if r := c.exec("timeout", "60", "cat", "/tmp/on").is(0); r.stdout != "over\n" {
			t.Errorf("the writer goes on without a reader: %q", r.stdout)
		}
	})
	t.Run("end of the container", func(t *testing.T) {
		pidFile := e.path("pid")
		p, exit := e.detach(pidFile, "exec", "--detach", "--pid-file", pidFile, c.id, "sh", "-c", "sleep 1000 & echo now")
		e.exitOf(exit)
		e.ok("kill", c.id, "KILL")
		c.exits(137)
		if r := p.wait(); r.stdout != "now\n" {
			t.Errorf("stdout %q", r.stdout)
		}
	})
	e.ok("delete", "--force", c.id)
}

// TestKillDoesNotStayConnected: kill does not keep a connection to the supervisor, which waits
// two seconds for connected verbs when it ends, and logs that.
func TestKillDoesNotStayConnected(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	e.ok("kill", c.id, "KILL")
	c.exits(137)
	if log := readFile(t, e.root+"/"+c.id+"/supervisor.log"); strings.Contains(log, "still connected") {
		t.Errorf("the supervisor waited for the verb that waited for the supervisor:\n%s", log)
	}
	e.ok("delete", c.id)
}
