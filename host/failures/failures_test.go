package failures

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "husk", "failures"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestDetached: nothing but the failures can be reached from what the supervisor keeps open.
func TestDetached(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("clones a mount: needs root")
	}
	dir := t.TempDir()
	s, err := OpenDetached(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Add(New("abc", "it ended", "")); err != nil {
		t.Fatal(err)
	}
	plain, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if all, err := plain.List(""); err != nil || len(all) != 1 {
		t.Errorf("%d failures, %v, want the one that was added", len(all), err)
	}
	f, err := s.root.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var self, above unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &self), unix.Fstatat(int(f.Fd()), "..", &above, 0)); err != nil {
		t.Fatal(err)
	}
	if self.Ino != above.Ino || self.Dev != above.Dev {
		t.Error("the directory leads to the host's root")
	}
}

func TestKept(t *testing.T) {
	s := newStore(t)
	for _, id := range []string{"abc", "abd", "x"} {
		if err := s.Add(New(id, "it ended", "one\ntwo\n")); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string]int{"": 3, "ab": 2, "x": 1, "y": 0} {
		all, err := s.List(prefix)
		if err != nil || len(all) != want {
			t.Errorf("%q: %d, %v, want %d", prefix, len(all), err, want)
		}
	}
	all, _ := s.List("x")
	if got, want := all[0].Line(), "container x: it ended; the guest's console ended with: one | two"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestBounded: text of a guest does not fill the disk, and contains no control characters.
func TestBounded(t *testing.T) {
	f := New("x", "a\x1b[2J\nb\u202e"+strings.Repeat("c", 5000), strings.Repeat(strings.Repeat("d", 5000)+"\r\x00\n", 500))
	if !strings.HasPrefix(f.Cause, "a[2J bc") || len(f.Cause) > maxCause || len(f.Console) != maxLines || len(f.Console[0]) > maxLine {
		t.Errorf("cause of %d bytes that begins with %.20q, %d lines, the first of %d bytes", len(f.Cause), f.Cause, len(f.Console), len(f.Console[0]))
	}
	s := newStore(t)
	began := time.Now()
	for i := range 2 * MaxCount {
		f := New(fmt.Sprint("c", i), "often", "")
		f.Time = began.Add(time.Duration(i) * time.Second)
		if err := s.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.List("")
	if err != nil || len(all) != MaxCount || all[0].ID != fmt.Sprint("c", MaxCount) {
		t.Errorf("%d are kept, %v", len(all), err)
	}
	for i := range 2 * MaxOfOne {
		f := New("again", "often", "")
		f.Time = began.Add(time.Duration(1000+i) * time.Second)
		if err := s.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	if all, err = s.List("again"); err != nil || len(all) != MaxOfOne {
		t.Errorf("%d of one container are kept, %v", len(all), err)
	}
	if all, err = s.List("c"); err != nil || len(all) != MaxCount-MaxOfOne {
		t.Errorf("%d of the others are kept, %v", len(all), err)
	}
	f = New("later", "x", "")
	f.Time = began.Add(2 * MaxAge)
	if err := s.Add(f); err != nil {
		t.Fatal(err)
	}
	if all, err = s.List(""); err != nil || len(all) != 1 {
		t.Errorf("%d are kept after their time, %v", len(all), err)
	}
}

// TestOthersFiles: a file that a killed supervisor has left is removed in time, and files that
// are no failures are ignored.
func TestOthersFiles(t *testing.T) {
	s := newStore(t)
	old := New("killed", "x", "")
	old.Time = time.Now().Add(-time.Hour)
	half := "." + old.Time.UTC().Format(timeFormat) + suffix("killed")
	for _, name := range []string{half, "README"} {
		if err := s.root.WriteFile(name, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Add(New("x", "y", "")); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(""); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := s.root.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a file: %v", err)
	}
	if _, err := s.root.Stat("README"); err != nil {
		t.Error(err)
	}
}

func TestLog(t *testing.T) {
	dir := t.TempDir()
	journal, syslog := filepath.Join(dir, "journal"), filepath.Join(dir, "log")
	if l := OpenLog(journal, syslog); l != nil || l.Send(New("x", "y", "")) != nil || l.Close() != nil {
		t.Error("there is a log where there is none")
	}
	f := New("c1", "it ended", "panic\nMESSAGE=forged")
	line := "container c1: it ended; the guest's console ended with: panic | MESSAGE=forged"
	for _, c := range []struct {
		socket string
		want   func(string) bool
	}{
		{syslog, func(s string) bool {
			return strings.HasPrefix(s, "<27>") && strings.HasSuffix(s, " husk: "+line)
		}},
		{journal, func(s string) bool {
			return s == "MESSAGE\n"+string([]byte{byte(len(line)), 0, 0, 0, 0, 0, 0, 0})+line+"\n"+
				"PRIORITY\n\x01\x00\x00\x00\x00\x00\x00\x003\nSYSLOG_IDENTIFIER\n\x04\x00\x00\x00\x00\x00\x00\x00husk\n"+
				"CONTAINER_ID\n\x02\x00\x00\x00\x00\x00\x00\x00c1\n"
		}},
	} {
		server, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: c.socket, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		l := OpenLog(journal, syslog)
		// A connected log needs no path.
		if err := os.Remove(c.socket); err != nil {
			t.Fatal(err)
		}
		if err := l.Send(f); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, maxMessage)
		n, err := server.Read(buf)
		if err != nil || !c.want(string(buf[:n])) {
			t.Errorf("%s got %q, %v", c.socket, buf[:n], err)
		}
		_ = l.Close()
	}
}
