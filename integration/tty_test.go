//go:build integration

package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// consoleSocket is the engine's end of --console-socket.
type consoleSocket struct {
	t    *testing.T
	path string
	l    *net.UnixListener
}

func (e *env) consoleSocket() *consoleSocket {
	e.t.Helper()
	path := e.path("console")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { l.Close() })
	return &consoleSocket{e.t, path, l}
}

// receive accepts one connection and returns the pty master that comes on it: one message of at
// least one byte with exactly one descriptor, then the end. As the shim, it accepts only after
// create has returned.
func (s *consoleSocket) receive() *os.File {
	s.t.Helper()
	if err := s.l.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		s.t.Fatal(err)
	}
	conn, err := s.l.AcceptUnix()
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		s.t.Fatal(err)
	}
	name, oob := make([]byte, 4096), make([]byte, 4096)
	n, oobn, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		s.t.Fatal(err)
	}
	if n < 1 || n >= 4096 {
		s.t.Errorf("console socket: %d bytes beside the descriptor", n)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		s.t.Fatalf("console socket: %d control messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		s.t.Fatalf("console socket: %d descriptors, %v", len(fds), err)
	}
	if n, err := conn.Read(name); n != 0 || err == nil {
		s.t.Errorf("console socket: not closed after the message (%d bytes, %v)", n, err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		s.t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n]))
}

// terminal is a pty's master with what arrives on it.
type terminal struct {
	t      *testing.T
	master *os.File
	out    *stream
}

func newTerminal(t *testing.T, master *os.File) *terminal {
	t.Helper()
	fd, err := unix.Dup(int(master.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	reader := os.NewFile(uintptr(fd), master.Name())
	t.Cleanup(func() { master.Close() })
	return &terminal{t, master, newStream(reader)}
}

func (m *terminal) typeIn(text string) {
	m.t.Helper()
	if _, err := m.master.WriteString(text); err != nil {
		m.t.Fatal(err)
	}
}

func (m *terminal) resize(rows, columns uint16) {
	m.t.Helper()
	if err := pty.Setsize(m.master, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		m.t.Fatal(err)
	}
}

func TestConsoleSocket(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	socket := e.consoleSocket()
	bundle := e.bundle(withTerminal(), withArgs("sh"), func(s *specs.Spec) {
		s.Process.ConsoleSize = &specs.Box{Height: 31, Width: 97}
		s.Process.Env = append(s.Process.Env, "PS1=prompt# ", "TERM=xterm")
	})
	// As with the shim, stdin is /dev/null, and stdout and stderr are a pipe that is read to
	// its end first. A helper process that inherits the pipe would hang `docker run -t`.
	id, pidFile := e.id(), e.path("pid")
	e.do("create", "--bundle", bundle, "--console-socket", socket.path, "--pid-file", pidFile, id).is(0)
	exit := reap(readPID(t, pidFile))
	m := newTerminal(t, socket.receive())
	e.ok("start", id)

	m.out.expect(t, "prompt# ")
	terminalBehaves(t, m, e, id)
	m.typeIn("exit 6\nexit 6\n") // the first may be answered by a message about a stopped job
	if code := e.exitOf(exit); code != 6 {
		t.Errorf("exit code %d, want 6", code)
	}
	if err := m.out.waitEOF(testTimeout); err != nil {
		t.Errorf("the terminal stays open after the container's end: %v", err)
	}
	e.ok("delete", id)
}

// terminalBehaves tests what people notice first if a terminal is not a real one.
func terminalBehaves(t *testing.T, m *terminal, e *env, id string) {
	t.Helper()
	m.typeIn("stty size; tty\n")
	m.out.expect(t, "\r\n31 97\r\n") // consoleSize of config.json; and no \r\r\n
	m.out.expect(t, "/dev/pts/")

	m.typeIn("test -t 0 && test -t 1 && test -t 2 && echo three ttys\n")
	m.out.expect(t, "\r\nthree ttys\r\n")

	// A running program gets SIGWINCH at a resize.
	m.typeIn("sh -c 'trap \"echo winch; stty size; exit\" WINCH; echo trapped; while :; do sleep 0.1; done'\n")
	m.out.expect(t, "\r\ntrapped\r\n")
	m.resize(40, 120)
	m.out.expect(t, "\r\nwinch\r\n40 120\r\n")

	// ^C ends the foreground job, not the shell.
	m.typeIn("echo sleeping; sleep 1000\n")
	m.out.expect(t, "\r\nsleeping\r\n")
	waitForExec(t, e, id, "sleep 1000")
	m.typeIn("\x03")
	m.typeIn("echo code $?\n")
	m.out.expect(t, "\r\ncode 130\r\n")

	// ^Z and fg: job control.
	m.typeIn("sleep 2000\n")
	waitForExec(t, e, id, "sleep 2000")
	m.typeIn("\x1a")
	m.out.expect(t, "Stopped")
	m.typeIn("jobs; kill -KILL %1; wait; echo jobs done\n")
	m.out.expect(t, "\r\njobs done\r\n")
}

// waitForExec waits until a command line appears inside the container.
func waitForExec(t *testing.T, e *env, id, command string) {
	t.Helper()
	eventually(t, command+" runs", testTimeout/2, func() bool {
		out := e.ok("exec", id, "sh", "-c", "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; echo; done 2>/dev/null")
		return strings.Contains(out, "\n"+command+" \n")
	})
}

// TestTerminalOutputIsNotTranslatedTwice: the terminal turns \n into \r\n exactly once,
// whatever conmon does to the master.
func TestTerminalOutputIsNotTranslatedTwice(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	socket := e.consoleSocket()
	id, pidFile := e.id(), e.path("pid")
	e.do("create", "--bundle", e.bundle(withTerminal(), withScript("echo one; echo two")),
		"--console-socket", socket.path, "--pid-file", pidFile, id).is(0)
	exit := reap(readPID(t, pidFile))
	master := socket.receive()
	// conmon turns ONLCR on.
	termios, err := unix.IoctlGetTermios(int(master.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	termios.Oflag |= unix.ONLCR
	if err := unix.IoctlSetTermios(int(master.Fd()), unix.TCSETS, termios); err != nil {
		t.Fatal(err)
	}
	m := newTerminal(t, master)
	e.ok("start", id)
	e.exitOf(exit)
	if err := m.out.waitEOF(testTimeout); err != nil {
		t.Error(err)
	}
	if got := m.out.String(); got != "one\r\ntwo\r\n" {
		t.Errorf("terminal output %q", got)
	}
	e.ok("delete", id)
}

func TestExecConsoleSocket(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	socket := e.consoleSocket()
	file := writeProcess(t, e, specs.Process{
		Terminal: true, Args: []string{"sh", "-c", "stty size; echo in; read x; echo got $x; exit 8"}, Cwd: "/",
		Env: []string{"PATH=/bin"}, ConsoleSize: &specs.Box{Height: 20, Width: 70},
	})
	pidFile := e.path("pid")
	e.do("exec", "--process", file, "--console-socket", socket.path, "--detach", "--pid-file", pidFile, c.id).is(0)
	exit := reap(readPID(t, pidFile))
	m := newTerminal(t, socket.receive())
	m.out.expect(t, "in\r\n")
	if !strings.Contains(m.out.String(), "20 70\r\n") {
		t.Errorf("size: %q", m.out)
	}
	m.typeIn("typed\n")
	m.out.expect(t, "got typed\r\n")
	if code := e.exitOf(exit); code != 8 {
		t.Errorf("exit code %d, want 8", code)
	}
	if err := m.out.waitEOF(testTimeout); err != nil {
		t.Errorf("the terminal stays open: %v", err)
	}
	c.stop()
}

// onTerminal starts the runtime as a person does on a terminal.
func (e *env) onTerminal(rows, columns uint16, args ...string) (*process, *terminal, *os.File) {
	e.t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		e.t.Fatal(err)
	}
	if err := pty.Setsize(master, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		e.t.Fatal(err)
	}
	p := e.start(call{
		stdin: slave, stdout: slave, stderr: slave,
		attr: &unix.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	}, args...)
	e.t.Cleanup(func() { slave.Close() })
	return p, newTerminal(e.t, master), slave
}

func termiosOf(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	termios, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *termios
}

func TestRunOnTerminal(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	before := termiosOf(t, slave)
	master.Close()
	slave.Close()

	bundle := e.bundle(withTerminal(), withArgs("sh"), func(s *specs.Spec) {
		s.Process.Env = append(s.Process.Env, "PS1=prompt# ")
	})
	id := e.id()
	p, m, slave := e.onTerminal(25, 85, "run", "--bundle", bundle, id)
	m.out.expect(t, "prompt# ")
	m.typeIn("stty size\n")
	m.out.expect(t, "\r\n25 85\r\n")
	m.resize(33, 99)
	eventually(t, "the new size is seen inside", testTimeout/2, func() bool {
		m.typeIn("stty size\n")
		return m.out.until(2*time.Second, func(text string, _ bool) bool { return strings.Contains(text, "\r\n33 99\r\n") }) == nil
	})
	m.typeIn("sleep 1000\n")
	waitForExec(t, e, id, "sleep 1000")
	m.typeIn("\x03")
	m.typeIn("echo still here\n")
	m.out.expect(t, "\r\nstill here\r\n")
	m.typeIn("exit 11\n")
	if code := p.code(); code != 11 {
		t.Errorf("exit code %d, want 11", code)
	}
	if after := termiosOf(t, slave); after != before {
		t.Errorf("the terminal is not as it was:\nbefore %+v\nafter  %+v", before, after)
	}
}

func TestExecOnTerminal(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	p, m, slave := e.onTerminal(22, 66, "exec", "--tty", c.id, "sh", "-c",
		`while s=$(stty size 2>/dev/null); [ -z "$s" ]; do sleep 0.1; done; echo $s; tty; read x; echo got $x; exit 12`)
	m.out.expect(t, "22 66\r\n")
	m.out.expect(t, "/dev/pts/")
	m.typeIn("line\n")
	m.out.expect(t, "got line\r\n")
	if code := p.code(); code != 12 {
		t.Errorf("exit code %d, want 12", code)
	}
	if after := termiosOf(t, slave); after.Lflag&unix.ICANON == 0 || after.Lflag&unix.ECHO == 0 {
		t.Error("the terminal is still raw")
	}
	c.stop()
}

// TestPidfdSocket: the pidfd of --pidfd-socket is that of the process in the pid file.
func TestPidfdSocket(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	if !strings.Contains(e.ok("create", "--help"), "--pidfd-socket") {
		return // runc before 1.2
	}
	pidOf := func(socket *consoleSocket) int {
		pidfd := socket.receive()
		info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ := strings.Cut(string(info), "\nPid:\t")
		text, _, _ = strings.Cut(text, "\n")
		pid, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("not a pidfd: %s", info)
		}
		return pid
	}
	socket := e.consoleSocket()
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")), "--pidfd-socket", socket.path)
	if got := pidOf(socket); got != c.pid {
		t.Errorf("create: pidfd of %d, want %d", got, c.pid)
	}
	pidFile := e.path("exec-pid")
	_, exit := e.detach(pidFile, "exec", "--detach", "--pid-file", pidFile, "--pidfd-socket", socket.path, c.id, "sleep", "1000")
	if got, want := pidOf(socket), readPID(t, pidFile); got != want {
		t.Errorf("exec: pidfd of %d, want %d", got, want)
	}
	c.stop()
	e.exitOf(exit)
}

// TestOutputOfTerminalToPipe: a process has a terminal and a program reads its output, so lines
// must end as programs expect. runc 1.1 may set the terminal up after the process has begun to
// write, and may lose what it writes just before its end. So the process waits for Enter before
// and after writing.
func TestOutputOfTerminalToPipe(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	for _, p := range []struct {
		name, want string // with the terminal's echo of the first Enter
		args       []string
	}{
		{"run", "\none\ntwo\n", []string{"run", "--bundle", e.bundle(withTerminal(), withScript("read x; echo one; echo two; read x")), e.id()}},
		{"exec", "\nthree\n", []string{"exec", "--tty", c.id, "sh", "-c", "read x; echo three; read x"}},
	} {
		started, master, slave := e.pipedTerminal(p.args...)
		// This is the last thing that the runtime does before it passes input on.
		eventually(t, p.name+" has made the terminal raw", testTimeout/2, func() bool {
			return termiosOf(t, slave).Lflag&unix.ICANON == 0
		})
		enter := func() {
			t.Helper()
			if _, err := master.WriteString("\n"); err != nil {
				t.Fatal(err)
			}
		}
		enter()
		started.stdout.expect(t, p.want)
		enter()
		if got := started.wait().is(0).stdout; got != p.want && got != p.want+"\n" {
			t.Errorf("%s: %q, want %q", p.name, got, p.want)
		}
	}
	c.stop()
}

// TestLastOutputOfTerminal: output that a process writes to its terminal just before it ends is
// not lost.
func TestLastOutputOfTerminal(t *testing.T) {
	needVM(t) // see TestOutputOfTerminalToPipe
	t.Parallel()
	e := newEnv(t)
	p, _, _ := e.pipedTerminal("run", "--bundle", e.bundle(withTerminal(), withScript("echo one; echo two")), e.id())
	if got := p.wait().is(0).stdout; got != "one\ntwo\n" {
		t.Errorf("run: %q", got)
	}
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	p, _, _ = e.pipedTerminal("exec", "--tty", c.id, "echo", "three")
	if got := p.wait().is(0).stdout; got != "three\n" {
		t.Errorf("exec: %q", got)
	}
	c.stop()
}

// pipedTerminal starts the runtime with a terminal as stdin and a pipe as stdout.
func (e *env) pipedTerminal(args ...string) (p *process, master, slave *os.File) {
	e.t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { master.Close(); slave.Close() })
	return e.start(call{stdin: slave, attr: &unix.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}}, args...), master, slave
}

// TestConsoleSocketRefused: if nobody accepts on the console socket, create fails and leaves
// nothing.
func TestConsoleSocketRefused(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	path := filepath.Join(e.dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	e.do("create", "--bundle", e.bundle(withTerminal()), "--console-socket", path, e.id()).
		fails(1, fmt.Sprintf("runc create failed: dial unix %s: connect: connection refused", path))
}
