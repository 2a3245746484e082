//go:build integration

package integration

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func withEnv(entries ...string) specOption {
	return func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, entries...) }
}

// manager returns a service manager's end of sd_notify(3).
func manager(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	return c
}

// hears fails unless the next notification is this one.
func hears(t *testing.T, c *net.UnixConn, want string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil || string(b[:n]) != want {
		t.Errorf("heard %q, %v; want %q", b[:n], err, want)
	}
}

// TestNotifySocket: NOTIFY_SOCKET is in a bind, as podman --sdnotify=container makes it. The
// service manager gets the process's messages while it runs, and its last ones.
func TestNotifySocket(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	dir := e.mkdir("notify")
	c := manager(t, filepath.Join(dir, "notify.sock"))
	bundle := e.bundle(withBind(dir, "/run/notify", "rbind", "ro"), withEnv("NOTIFY_SOCKET=/run/notify/notify.sock"),
		func(s *specs.Spec) { s.Process.User = specs.User{UID: 1000, GID: 1000} },
		withScript("testprog notify READY=1 && sleep 1000 & read x; testprog notify STATUS=last STOPPING=1"))
	p := e.start(call{pipe: true}, "run", "--bundle", bundle, e.id())
	hears(t, c, "READY=1")
	p.stdin.Close()
	p.wait().is(0)
	hears(t, c, "STATUS=last")
	hears(t, c, "STOPPING=1")
}

// TestNotifySocketBoundAlone: only the socket is bound.
func TestNotifySocketBoundAlone(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	path := e.path("manager")
	c := manager(t, path)
	bundle := e.bundle(withBind(path, "/sock", "bind"), withEnv("NOTIFY_SOCKET=/sock"), withArgs("testprog", "notify", "READY=1\nSTATUS=x"))
	e.ok("run", "--bundle", bundle, e.id())
	hears(t, c, "READY=1\nSTATUS=x")
}

// TestNotifySocketIsNarrow: a guest cannot name processes of the host and cannot use another
// socket.
func TestNotifySocketIsNarrow(t *testing.T) {
	if !isVM {
		t.Skip("with runc the process has the host's socket")
	}
	t.Parallel()
	e := newEnv(t)
	dir := e.mkdir("notify")
	c := manager(t, filepath.Join(dir, "notify.sock"))
	bundle := e.bundle(withBind(dir, "/run/notify", "rbind"), withEnv("NOTIFY_SOCKET=/run/notify/notify.sock"),
		withArgs("testprog", "notify", "MAINPID=1", "FDSTORE=1\nREADY=1\nMAINPID=1\nnonsense"))
	e.ok("run", "--bundle", bundle, e.id())
	hears(t, c, "READY=1")

	other := manager(t, e.path("other"))
	if err := os.Symlink(e.path("other"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	bundle = e.bundle(withBind(dir, "/run/notify", "rbind"), withEnv("NOTIFY_SOCKET=/run/notify/link"),
		withScript("testprog notify READY=1; true"))
	e.ok("run", "--bundle", bundle, e.id())
	if err := other.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n, err := other.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, unix.EAGAIN) {
		t.Errorf("heard %d bytes over a symbolic link, %v", n, err)
	}
}
