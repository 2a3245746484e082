//go:build integration

package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStdinEndOfFile(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	p := e.start(call{pipe: true}, "run", "--bundle", e.bundle(withArgs("cat")), e.id())
	if _, err := p.stdin.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	p.stdin.Close()
	if r := p.wait().is(0); r.stdout != "x" {
		t.Errorf("stdout %q, want x", r.stdout)
	}
}

// TestStdinBig: bytes that are written to stdin while the guest boots are not lost.
func TestStdinBig(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	data := bytes.Repeat([]byte("0123456789abcde\n"), 1<<18) // 4 MiB
	file := e.path("stdin")
	writeFile(t, file, string(data))
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r := e.start(call{stdin: in}, "run", "--bundle", e.bundle(withArgs("sha256sum")), e.id()).wait().is(0)
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(r.stdout, want) {
		t.Errorf("sha256 inside: %s, want %s", r.stdout, want)
	}
}

func TestStdoutAndStderrDoNotMerge(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.do("run", "--bundle", e.bundle(withScript(
		"for i in 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done")), e.id()).is(0)
	if strings.Contains(r.stdout, "err") || strings.Contains(r.stderr, "out") ||
		strings.Count(r.stdout, "out") != 9 || strings.Count(r.stderr, "err") != 9 {
		t.Errorf("stdout %q, stderr %q", r.stdout, r.stderr)
	}
}

// TestStdoutWhole: output arrives complete, in order and unchanged. HUSK_STDOUT_MIB sets how
// much, where emulation is too slow for a GiB.
func TestStdoutWhole(t *testing.T) {
	t.Parallel()
	mib := 1024
	if text := os.Getenv("HUSK_STDOUT_MIB"); text != "" {
		var err error
		if mib, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	e := newEnv(t)
	r, w := e.osPipe()
	p := e.start(call{stdout: w}, "run", "--bundle", e.bundle(withArgs("testprog", "pattern", strconv.Itoa(mib))), e.id())
	w.Close()
	sum := sha256.New()
	began := time.Now()
	n, err := io.Copy(sum, r)
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB in %v", n>>20, time.Since(began).Round(time.Millisecond))
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr)
	}
	if n != int64(mib)<<20 {
		t.Errorf("%d bytes arrived, want %d", n, int64(mib)<<20)
	}
	p.stderr.expect(t, "\n")
	if got := fmt.Sprintf("%x\n", sum.Sum(nil)); got != p.stderr.String() {
		t.Errorf("sha256 outside %s, inside %s", got, p.stderr)
	}
}

// TestStalledStderrDoesNotStallStdout: if nobody reads stderr, stdout goes on.
func TestStalledStderrDoesNotStallStdout(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	unread, w := e.osPipe()
	defer unread.Close()
	c := e.createWith(call{stderr: w}, e.bundle(withArgs("testprog", "flood", "20000")))
	w.Close()
	e.ok("start", c.id)
	c.stdout.expect(t, "line 19999\n")
	c.stop()
}

// TestStdoutToRegularFile: the validation suites pass regular files, and read them as soon as
// the state is stopped.
func TestStdoutToRegularFile(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withScript("echo to a file; echo errors >&2"))
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(bundle, name), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	out, errs := open("stdout"), open("stderr")
	defer out.Close()
	defer errs.Close()
	c := e.createWith(call{stdout: out, stderr: errs}, bundle)
	e.ok("start", c.id)
	eventually(t, "state is stopped", testTimeout, func() bool { return c.status() == "stopped" })
	if got := readFile(t, out.Name()); got != "to a file\n" {
		t.Errorf("stdout %q at the moment the state became stopped", got)
	}
	if got := readFile(t, errs.Name()); got != "errors\n" {
		t.Errorf("stderr %q", got)
	}
	c.exits(0)
	e.ok("delete", c.id)
}

// TestStdoutClosed: output to a pipe without a reader ends the writer by SIGPIPE.
func TestStdoutClosed(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r, w := e.osPipe()
	c := e.createWith(call{stdout: w}, e.bundle(withScript("yes; echo yes ended with $? >&2")))
	w.Close()
	e.ok("start", c.id)
	if _, err := r.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	c.stderr.expect(t, "yes ended with")
	c.exits(0)
	e.ok("delete", c.id)
}

// TestInheritedDescriptorsAreClosed: the first create of a shim inherits descriptor 3, the
// shim's listening socket. No process may keep it, and the container must not see it.
func TestInheritedDescriptorsAreClosed(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	path := filepath.Join(e.dir, "listen")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := e.osPipe() // it shows whether anyone still holds the other end
	c := e.createWith(call{extra: []*os.File{socket, pw}}, e.bundle(withScript("testprog fds; exec sleep 1000")))
	l.Close()
	socket.Close()
	pw.Close()
	e.ok("start", c.id)
	if err := newStream(pr).waitEOF(testTimeout); err != nil {
		t.Errorf("a process of the container keeps an inherited pipe: %v", err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		t.Error("a process of the container keeps the inherited listening socket")
	}
	c.stdout.expect(t, "2 ")
	for line := range strings.Lines(c.stdout.String()) {
		if fd, _, _ := strings.Cut(line, " "); fd > "2" {
			t.Errorf("descriptor in the container: %s", line)
		}
	}
	c.stop()
}

// TestStartKeepsNoStdio: the caller of start is not the container's parent, so its stdio is not
// kept.
func TestStartKeepsNoStdio(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withScript("echo once; exec sleep 1000")))
	e.do("start", c.id).is(0) // wait in do fails if the pipe stays open
	c.stdout.expect(t, "once\n")
	c.stop()
}

// TestSignalsToPIDReachContainer: conmon sends signals for the container to the process in the
// pid file.
func TestSignalsToPIDReachContainer(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("testprog", "signals")))
	c.stdout.expect(t, "ready\n")
	for _, s := range []unix.Signal{
		unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGWINCH, unix.SIGALRM, unix.SIGCONT, 37, 64,
	} {
		if err := unix.Kill(c.pid, s); err != nil {
			t.Fatal(err)
		}
		c.stdout.expect(t, fmt.Sprintf("signal %d\n", int(s)))
	}
	if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.exits(137)
	eventually(t, "state is stopped", testTimeout, func() bool { return c.status() == "stopped" })
	e.ok("delete", c.id)
}
