//go:build integration

package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// TestPreserveFDs: --preserve-fds passes descriptors from 3 on, and all others are closed.
func TestPreserveFDs(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r, w := e.osPipe()
	c := e.createWith(call{extra: []*os.File{w}}, e.bundle(withScript("echo through three >&3; exec sleep 1000")), "--preserve-fds", "1")
	w.Close()
	e.ok("start", c.id)
	got := newStream(r)
	got.expect(t, "through three\n")
	t.Run("exec", func(t *testing.T) { execWithFDs(t, c) })
	c.stop()
	if err := got.waitEOF(testTimeout); err != nil {
		t.Errorf("the container has ended, and its descriptor is still open: %v", err)
	}
}

// execWithFDs passes a descriptor of each kind: a file to read, a pipe to write, and a socket.
func execWithFDs(t *testing.T, c *container) {
	path := c.e.path("file")
	writeFile(t, path, "from the host\n")
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w := c.e.osPipe()
	ours, theirs, err := syscalls.SocketPair("passed")
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	p := c.e.start(call{extra: []*os.File{file, w, theirs}}, "exec", "--preserve-fds", "3", c.id,
		"sh", "-c", `cat <&3; cat <&5 >&4; echo answer >&5; ls /proc/self/fd`)
	w.Close()
	theirs.Close()
	if _, err := ours.WriteString("into the socket"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(int(ours.Fd()), unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "into the socket" {
		t.Errorf("from the pipe: %q, %v", b, err)
	}
	if b, err := io.ReadAll(ours); err != nil || string(b) != "answer\n" {
		t.Errorf("from the socket: %q, %v", b, err)
	}
	// 6 is the listed directory itself.
	if got := p.wait().is(0).stdout; got != "from the host\n0\n1\n2\n3\n4\n5\n6\n" {
		t.Errorf("stdout: %q", got)
	}
}

// TestPreservedListener: a service gets a listening socket.
func TestPreservedListener(t *testing.T) {
	t.Parallel()
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": ""} {
		t.Run(network, func(t *testing.T) {
			e := newEnv(t)
			l, err := net.Listen(network, address)
			if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
				t.Skip("the host has no IPv6")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			f, err := l.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			p := e.start(call{extra: []*os.File{f}}, "run", "--preserve-fds", "1", "--bundle", e.bundle(withArgs("testprog", "activated")), e.id())
			f.Close()
			for i := range 3 {
				word := fmt.Sprintf("word%d", i)
				want := strings.ToUpper(word) + " " + l.Addr().Network()
				if got := converse(t, l.Addr(), word); got != want {
					t.Errorf("answer %q, want %q", got, want)
				}
			}
			converse(t, l.Addr(), "")
			p.wait().is(0)
		})
	}
}

// converse sends a text to the end and returns the answer.
func converse(t *testing.T, to net.Addr, text string) string {
	t.Helper()
	c, err := net.Dial(to.Network(), to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("read answer: %v", err)
	}
	return string(b)
}

// TestSocketActivation: a service manager says how many sockets it passes, and to whom.
func TestSocketActivation(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	path := e.path("socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	bundle := e.bundle(withScript(`echo "$LISTEN_FDS $LISTEN_PID"; exec testprog activated`))
	p := e.start(call{
		extra: []*os.File{f}, via: []string{"sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"`, "sh"},
	}, "run", "--bundle", bundle, e.id())
	f.Close()
	if got := converse(t, l.Addr(), "word"); got != "WORD unix" {
		t.Errorf("answer %q", got)
	}
	converse(t, l.Addr(), "")
	if got := p.wait().is(0).stdout; got != "1 1\n" {
		t.Errorf("the process was told %q", got)
	}
}

func TestPreserveFDsRefused(t *testing.T) {
	if !isVM {
		t.Skip("runc passes any descriptor")
	}
	t.Parallel()
	e := newEnv(t)
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	e.start(call{extra: []*os.File{dir}}, "create", "--preserve-fds", "1", "--bundle", e.bundle(), e.id()).wait().fails(1,
		"runc create failed: --preserve-fds: descriptor 3: only files, pipes, character devices and stream sockets can be passed into a virtual machine")
}
