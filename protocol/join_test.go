package protocol

import (
	"io"
	"net"
	"path/filepath"
	"testing"
)

// connections returns the two ends of a connection.
func connections(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestJoin(t *testing.T) {
	left, a := connections(t)
	right, b := connections(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		Join(a, b)
	}()
	for _, way := range []struct {
		text     string
		from, to *net.UnixConn
	}{{"to the right", left, right}, {"to the left", right, left}} {
		if _, err := io.WriteString(way.from, way.text); err != nil {
			t.Fatal(err)
		}
		// The other direction must still work.
		if err := way.from.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(way.to); err != nil || string(got) != way.text {
			t.Errorf("read %q, %v; want %q", got, err, way.text)
		}
	}
	<-done
}

// TestJoinOfOneThatIsGone: when one end is gone, the other learns of it although it goes on
// sending.
func TestJoinOfOneThatIsGone(t *testing.T) {
	left, a := connections(t)
	right, b := connections(t)
	right.Close()
	go Join(a, b)
	for {
		if _, err := left.Write(make([]byte, 1024)); err != nil {
			return
		}
	}
}
