package protocol

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/huskvm/husk/linux/syscalls"
)

// pair returns two ends of a real socket, with deadlines. net.Pipe would not do, because it has
// no buffer and a channel has one.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	one, other, err := syscalls.ConnPair("channel")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{one, other} {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		t.Cleanup(func() { _ = c.Close() })
	}
	return one, other
}

// shake runs both sides of the handshake against each other and returns their errors.
func shake(t *testing.T, hostBuild, agentBuild string) (host, agent error) {
	t.Helper()
	h, a := pair(t)
	done := make(chan error, 1)
	go func() { done <- Answer(a, agentBuild, func(Offer) error { return nil }) }()
	host = Greet(h, hostBuild, Offer{})
	return host, <-done
}

func TestHandshakeAgrees(t *testing.T) {
	host, agent := shake(t, "b1", "b1")
	if host != nil || agent != nil {
		t.Fatalf("host: %v, agent: %v", host, agent)
	}
}

func TestHandshakeRefusesAnotherBuild(t *testing.T) {
	host, agent := shake(t, "b1", "b2")
	for side, err := range map[string]error{"host": host, "agent": agent} {
		if !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: %v, want ErrMismatch", side, err)
		} else if !strings.Contains(err.Error(), "b1") || !strings.Contains(err.Error(), "b2") {
			t.Errorf("%s: %q does not name both builds", side, err)
		}
	}
}

func TestGreetingRefused(t *testing.T) {
	for name, line := range map[string]string{
		"another version": "husk/999 b1\n",
		"another program": "SSH-2.0-OpenSSH_9\n",
		"control bytes":   "husk/3 b1\x1b[2J\n",
		"carriage return": "husk/3 b1\r\n",
		"too long":        strings.Repeat("a", 10000) + "\n",
		"cut short":       "husk/2 b",
		"nothing":         "",
	} {
		t.Run(name, func(t *testing.T) {
			if err := checkGreeting(strings.NewReader(line), "b1"); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// TestGreetingLeavesTheRestUnread: bytes after the greeting are left for the session.
func TestGreetingLeavesTheRestUnread(t *testing.T) {
	r := strings.NewReader("husk/3 b1\nrest")
	if err := checkGreeting(r, "b1"); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "rest" {
		t.Errorf("rest is %q", rest)
	}
}

func FuzzGreeting(f *testing.F) {
	f.Add([]byte("husk/3 b1\n"))
	f.Add([]byte("husk/3 b1\nmore"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		line, err := readGreeting(r)
		if used := len(b) - r.Len(); used > maxGreeting {
			t.Fatalf("read %d bytes", used)
		}
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, []byte(line+"\n")) {
			t.Fatalf("line %q is not what was sent", line)
		}
		for _, c := range []byte(line) {
			if c < ' ' || c > '~' {
				t.Fatalf("line %q holds byte %#x", line, c)
			}
		}
	})
}
