//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// One container serves all subtests, because they test exec and not create.
func TestExec(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) {
		s.Process.Env = append(s.Process.Env, "FROM_CONFIG=1")
		s.Process.Cwd = "/tmp"
	}))

	t.Run("exit codes", func(t *testing.T) {
		for script, code := range map[string]int{
			"exit 0": 0, "exit 1": 1, "exit 42": 42, "exit 255": 255, "kill -KILL $$": 137, "kill -TERM $$": 143, "kill -INT $$": 130,
			"exec /etc/passwd": 126, "nosuchcommand": 127,
		} {
			if r := c.exec("sh", "-c", script); r.code != code {
				t.Errorf("%s: exit code %d, want %d", script, r.code, code)
			}
		}
	})
	t.Run("streams", func(t *testing.T) {
		p := e.start(call{pipe: true}, "exec", c.id, "sh", "-c", "cat; echo err >&2")
		if _, err := p.stdin.WriteString("through stdin"); err != nil {
			t.Fatal(err)
		}
		p.stdin.Close()
		if r := p.wait().is(0); r.stdout != "through stdin" || r.stderr != "err\n" {
			t.Errorf("stdout %q, stderr %q", r.stdout, r.stderr)
		}
	})
	t.Run("flags stop at the first argument", func(t *testing.T) {
		if r := c.exec("echo", "--tty", "-x", "--", "y").is(0); r.stdout != "--tty -x -- y\n" {
			t.Errorf("stdout %q", r.stdout)
		}
	})
	t.Run("failures", func(t *testing.T) {
		c.exec("/no/such").fails(255, `exec failed: unable to start container process: exec: "/no/such": stat /no/such: no such file or directory`)
		c.exec("nosuch").fails(255, `exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`)
		c.exec("/etc/passwd").fails(255, `exec failed: unable to start container process: exec: "/etc/passwd": permission denied`)
		e.do("exec", "--cwd", "/nodir", c.id, "true").fails(255,
			`exec failed: unable to start container process: chdir to cwd ("/nodir") set in config.json failed: no such file or directory`)
		pidFile := e.path("pid")
		e.do("exec", "--detach", "--pid-file", pidFile, c.id, "/no/such").fails(255,
			`exec failed: unable to start container process: exec: "/no/such": stat /no/such: no such file or directory`)
		if _, err := os.Stat(pidFile); err == nil {
			t.Error("a failed exec has left a pid file")
		}
	})
	t.Run("process flags", func(t *testing.T) { execFlags(t, c) })
	t.Run("process file", func(t *testing.T) { execProcessFile(t, c) })
	t.Run("detached", func(t *testing.T) { execDetached(t, c) })
	t.Run("many at once", func(t *testing.T) { execMany(t, c) })
	t.Run("killed from the host", func(t *testing.T) { execKilled(t, c) })
	c.stop()
}

// report is what testprog reports.
type report struct {
	UID, GID   int
	Groups     []int
	Cwd        string
	Args, Env  []string
	Hostname   string
	Domainname string
	Umask      int
	Rlimits    map[string][2]uint64
	Status     map[string]string
	OOMScore   string
	PID, PPID  int
}

func parseReport(t *testing.T, text string) report {
	t.Helper()
	var r report
	mustJSON(t, text, &r)
	return r
}

func execFlags(t *testing.T, c *container) {
	e := c.e
	r := parseReport(t, e.ok("exec", "--user", "1:77", "--cwd", "/etc", "--env", "A=b c", "--env", "FROM_CONFIG=2",
		"--cap", "CAP_SYS_TIME", "--additional-gids", "5", c.id, "testprog", "status"))
	if r.UID != 1 || r.GID != 77 || r.Cwd != "/etc" {
		t.Errorf("uid %d, gid %d, cwd %s", r.UID, r.GID, r.Cwd)
	}
	if !slices.Contains(r.Groups, 5) {
		t.Errorf("groups %v", r.Groups)
	}
	if !slices.Contains(r.Env, "A=b c") || !slices.Contains(r.Env, "FROM_CONFIG=2") || slices.Contains(r.Env, "FROM_CONFIG=1") {
		t.Errorf("env %q", r.Env)
	}
	bounding, err := strconv.ParseUint(r.Status["CapBnd"], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	if bounding&(1<<unix.CAP_SYS_TIME) == 0 {
		t.Errorf("CapBnd %x lacks CAP_SYS_TIME", bounding)
	}
	// Without flags exec uses the capabilities of config.json.
	r = parseReport(t, c.exec("testprog", "status").is(0).stdout)
	if r.Cwd != "/tmp" || !slices.Contains(r.Env, "FROM_CONFIG=1") || r.UID != 0 {
		t.Errorf("without flags: cwd %s, uid %d, env %q", r.Cwd, r.UID, r.Env)
	}
	if r.Hostname != "testbox" {
		t.Errorf("hostname %q", r.Hostname)
	}
}

// TestAmbientCapabilities: a capability that exec adds can become ambient only if the container
// has it inheritable. If it cannot, exec says so and does not fail.
func TestAmbientCapabilities(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) {
		s.Process.Capabilities = &specs.LinuxCapabilities{
			Bounding:    []string{"CAP_KILL", "CAP_CHOWN", "CAP_SYSLOG"},
			Permitted:   []string{"CAP_KILL", "CAP_CHOWN"},
			Effective:   []string{"CAP_KILL"},
			Inheritable: []string{"CAP_CHOWN", "CAP_SYSLOG"},
			Ambient:     []string{"CAP_CHOWN"},
		}
	}))
	ambient := func(r *result) uint64 {
		status := parseReport(t, r.is(0).stdout).Status
		bits, err := strconv.ParseUint(status["CapAmb"], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return bits
	}
	const chown, syslog = 1 << unix.CAP_CHOWN, 1 << unix.CAP_SYSLOG
	if got := ambient(e.do("exec", c.id, "testprog", "status")); got != chown {
		t.Errorf("CapAmb %x, want %x", got, chown)
	}
	if got := ambient(e.do("exec", "--cap", "CAP_SYSLOG", c.id, "testprog", "status")); got != chown|syslog {
		t.Errorf("with --cap: CapAmb %x, want %x", got, chown|syslog)
	}
	r := e.do("exec", "--cap", "CAP_FOWNER", c.id, "testprog", "status")
	if got := ambient(r); got != chown {
		t.Errorf("with one that is not inheritable: CapAmb %x, want %x", got, chown)
	}
	// runc prints this since 1.2.
	if isVM && !strings.Contains(r.log+r.stderr, "can't raise ambient capability CAP_FOWNER") {
		t.Errorf("nothing says that CAP_FOWNER is not ambient: log %q, stderr %q", r.log, r.stderr)
	}
}

func writeProcess(t *testing.T, e *env, p specs.Process) string {
	t.Helper()
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	file := e.path("process")
	writeFile(t, file, string(data))
	return file
}

func execProcessFile(t *testing.T, c *container) {
	e := c.e
	file := writeProcess(t, e, specs.Process{
		Args: []string{"testprog", "status"}, Cwd: "/bin", Env: []string{"PATH=/bin", "ONLY=this"},
		User:            specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8}},
		NoNewPrivileges: true,
		Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 100, Hard: 200}},
	})
	r := parseReport(t, e.ok("exec", "--process", file, c.id))
	if r.UID != 1000 || r.GID != 1001 || !slices.Contains(r.Groups, 7) || !slices.Contains(r.Groups, 8) || r.Cwd != "/bin" {
		t.Errorf("uid %d, gid %d, groups %v, cwd %s", r.UID, r.GID, r.Groups, r.Cwd)
	}
	if !slices.Contains(r.Env, "ONLY=this") || slices.Contains(r.Env, "FROM_CONFIG=1") {
		t.Errorf("env %q", r.Env)
	}
	if r.Status["NoNewPrivs"] != "1" || r.Rlimits["RLIMIT_CORE"] != [2]uint64{100, 200} {
		t.Errorf("no_new_privs %s, core %v", r.Status["NoNewPrivs"], r.Rlimits["RLIMIT_CORE"])
	}
}

// execDetached does what the shim does: the process file is removed at once, the pid becomes
// the shim's child, and the child exits with the process's exit code.
func execDetached(t *testing.T, c *container) {
	e := c.e
	file, pidFile := writeProcess(t, e, specs.Process{
		Args: []string{"sh", "-c", "read line; echo got $line; exit 7"}, Cwd: "/", Env: []string{"PATH=/bin"},
	}), e.path("pid")
	p := e.start(call{pipe: true}, "exec", "--process", file, "--detach", "--pid-file", pidFile, c.id)
	if code := p.code(); code != 0 {
		t.Fatalf("%s: exit code %d: %s", p, code, p.log())
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	pid := readPID(t, pidFile)
	exit := reap(pid)
	// runc's own process executes the command only after exec has returned.
	eventually(t, "argv of the exec's pid", testTimeout, func() bool { return strings.Contains(describe(pid), "read line") })
	if _, err := p.stdin.WriteString("text\n"); err != nil {
		t.Fatal(err)
	}
	if code := e.exitOf(exit); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	p.stdin.Close()
	if r := p.wait(); r.stdout != "got text\n" {
		t.Errorf("stdout %q", r.stdout)
	}
}

func execMany(t *testing.T, c *container) {
	const n = 10
	calls := make([]*process, n)
	for i := range calls {
		calls[i] = c.e.start(call{}, "exec", c.id, "sh", "-c", "echo "+strconv.Itoa(i)+"; exit "+strconv.Itoa(i))
	}
	for i, p := range calls {
		if r := p.wait(); r.code != i || r.stdout != strconv.Itoa(i)+"\n" {
			t.Errorf("exec %d: exit code %d, stdout %q, stderr %q", i, r.code, r.stdout, r.stderr)
		}
	}
}

// execKilled: engines end an exec'd process with kill(2) on its pid.
func execKilled(t *testing.T, c *container) {
	e := c.e
	for _, s := range []struct {
		signal unix.Signal
		code   int
	}{{unix.SIGUSR1, 5}, {unix.SIGTERM, 143}, {unix.SIGKILL, 137}} {
		pidFile := e.path("pid")
		p, exit := e.detach(pidFile, "exec", "--detach", "--pid-file", pidFile, c.id,
			"sh", "-c", "trap 'exit 5' USR1; echo ready; while :; do sleep 0.1; done")
		pid := readPID(t, pidFile)
		p.stdout.expect(t, "ready\n")
		if err := unix.Kill(pid, s.signal); err != nil {
			t.Fatal(err)
		}
		if code := e.exitOf(exit); code != s.code {
			t.Errorf("after %v: exit code %d, want %d", s.signal, code, s.code)
		}
		p.wait() // its output ends with it, also after SIGKILL
	}
	eventually(t, "nothing of the killed execs is left in the container", testTimeout, func() bool {
		return !strings.Contains(c.exec("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout, "trap 'exit 5'")
	})
}

func TestExecInCreated(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withArgs("sleep", "1000")))
	if r := c.exec("echo", "early").is(0); r.stdout != "early\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	c.stop()
}

// TestExecEndsWithContainer: when a container ends, its exec'd processes and their pids end
// too.
func TestExecEndsWithContainer(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	p := e.start(call{}, "exec", c.id, "sh", "-c", "echo up; sleep 1000")
	p.stdout.expect(t, "up\n")
	e.ok("kill", c.id, "KILL")
	c.exits(137)
	p.wait().is(137)
	e.ok("delete", c.id)
}
