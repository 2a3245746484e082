package machine

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/protocol"
)

func TestPermittedNotifications(t *testing.T) {
	for text, want := range map[string]string{
		"READY=1":                           "READY=1",
		"STATUS=a=b\nREADY=1\n":             "STATUS=a=b\nREADY=1",
		"MAINPID=1":                         "",
		"READY=1\nMAINPID=1\nFDSTORE=1":     "READY=1",
		"READY":                             "",
		"=\n\n":                             "",
		"STATUS=a\x00MAINPID=1":             "",
		"NOTIFYACCESS=all\nRELOADING=1":     "RELOADING=1",
		"WATCHDOG=1\nX_OWN=1\nREADY =1":     "WATCHDOG=1",
		"EXTEND_TIMEOUT_USEC=5\nBARRIER=1":  "EXTEND_TIMEOUT_USEC=5",
		"ready=1\nMAINPIDFD=1\nMAINPIDFDID": "",
	} {
		if got := string(permitted([]byte(text))); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestDialNotify(t *testing.T) {
	dir := t.TempDir()
	listen := func(path string) *net.UnixConn {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	manager := listen(filepath.Join(dir, "socket"))
	bind := filepath.Join(dir, "bind")
	if err := os.MkdirAll(filepath.Join(bind, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	listen(filepath.Join(bind, "sub", "socket"))
	if err := os.WriteFile(filepath.Join(bind, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"link": "../socket", "outside": ".."} {
		if err := os.Symlink(to, filepath.Join(bind, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, works := range map[string]bool{
		"sub/socket": true, "file": false, "missing": false, "link": false, "outside/socket": false, "../socket": false,
	} {
		c, err := dialNotify(&specconv.Notify{HostPath: bind, Name: name, GuestPath: "/x"})
		if (err == nil) != works {
			t.Errorf("%s: %v", name, err)
		}
		if c != nil {
			c.Close()
		}
	}

	c, err := dialNotify(&specconv.Notify{HostPath: filepath.Join(dir, "socket"), GuestPath: "/x"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var stream bytes.Buffer
	for _, text := range []string{"MAINPID=1", "STATUS=one", "READY=1\nMAINPID=1"} {
		if err := protocol.WriteNotification(&stream, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	stream.WriteString("\x00\x00") // no agent of husk sends this
	if err := passNotifications(c, &stream); err == nil || !strings.Contains(err.Error(), "0 bytes") {
		t.Errorf("a notification of no bytes: %v", err)
	}
	b := make([]byte, 100)
	for _, want := range []string{"STATUS=one", "READY=1"} {
		if n, err := manager.Read(b); err != nil || string(b[:n]) != want {
			t.Errorf("heard %q, %v; want %q", b[:n], err, want)
		}
	}
}

// FuzzPermitted: whatever the guest sends, only lines with permitted names pass.
func FuzzPermitted(f *testing.F) {
	f.Add([]byte("READY=1\nMAINPID=1\nSTATUS=a=b"))
	f.Add([]byte("FDSTORE=1\n\n=\nREADY\x00=1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for line := range bytes.SplitSeq(permitted(text), []byte("\n")) {
			name, _, ok := bytes.Cut(line, []byte("="))
			if len(line) > 0 && (!ok || !permittedNames[string(name)] || bytes.IndexByte(line, 0) >= 0) {
				t.Errorf("%q lets %q pass", text, line)
			}
		}
	})
}
