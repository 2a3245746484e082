package main

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// gateOf returns a gate whose listener is a unix socket, and a function that dials it. All
// peers count as the host's unless may says otherwise.
func gateOf(t *testing.T, secret protocol.Secret, may func(net.Addr) bool) (g *gate, dial func() net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gate")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g = newGate(l, secret, may)
	t.Cleanup(g.close)
	return g, func() net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(patience))
		return conn
	}
}

func anybody(net.Addr) bool { return true }

type admission struct {
	conn net.Conn
	err  error
}

func admit(g *gate) <-chan admission {
	ch := make(chan admission, 1)
	go func() {
		conn, err := g.admit()
		ch <- admission{conn, err}
	}()
	return ch
}

func wantAdmitted(t *testing.T, host net.Conn, admitted <-chan admission) {
	t.Helper()
	if err := protocol.ReadStreamAck(host); err != nil {
		t.Fatalf("the host with the secret was refused: %v", err)
	}
	select {
	case a := <-admitted:
		if a.err != nil {
			t.Fatal(a.err)
		}
		// Bytes after the secret belong to the session and stay unread.
		if _, err := io.WriteString(host, "session"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len("session"))
		if _, err := io.ReadFull(a.conn, b); err != nil || string(b) != "session" {
			t.Fatalf("the session begins with %q, %v", b, err)
		}
		_ = a.conn.Close()
	case <-time.After(patience):
		t.Fatal("admit still waits")
	}
}

// wantRefused reads conn to its end, and fails if any byte comes before it.
func wantRefused(t *testing.T, who string, conn net.Conn) {
	t.Helper()
	b, err := io.ReadAll(conn)
	if errors.Is(err, unix.ECONNRESET) {
		err = nil
	}
	if len(b) > 0 || err != nil {
		t.Errorf("%s: read %q, %v, want the end at once", who, b, err)
	}
}

func TestGateRefusesAllButTheSecret(t *testing.T) {
	secret := protocol.NewSecret()
	g, dial := gateOf(t, secret, anybody)
	admitted := admit(g)
	anothers := protocol.NewSecret()
	almost := secret
	almost[protocol.SecretSize-1] ^= 1
	for who, says := range map[string]string{
		"garbage":             strings.Repeat("\xff\x00", 100),
		"zeros":               strings.Repeat("\x00", protocol.SecretSize),
		"another VM's secret": string(anothers[:]),
		"all but one bit":     string(almost[:]),
		"a shifted secret":    "c" + string(secret[:]),
		"a stream header":     "c\x00\x00\x00" + strings.Repeat("\x00", protocol.SecretSize),
	} {
		conn := dial()
		if _, err := io.WriteString(conn, says); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, who, conn)
	}
	short := dial()
	if _, err := short.Write(secret[:protocol.SecretSize-1]); err != nil {
		t.Fatal(err)
	}
	_ = short.(*net.UnixConn).CloseWrite()
	wantRefused(t, "a short secret", short)

	host := dial()
	if _, err := host.Write(secret[:]); err != nil {
		t.Fatal(err)
	}
	wantAdmitted(t, host, admitted)
}

// TestGateIsShutBehindTheHost: the secret opens the gate once. Later peers with the secret, and
// peers that were waiting, are refused.
func TestGateIsShutBehindTheHost(t *testing.T) {
	secret := protocol.NewSecret()
	g, dial := gateOf(t, secret, anybody)
	path := g.listener.Addr().String()
	admitted := admit(g)
	silent := dial()
	host := dial()
	if _, err := host.Write(secret[:]); err != nil {
		t.Fatal(err)
	}
	wantAdmitted(t, host, admitted)
	wantRefused(t, "who waited", silent)
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the port is still open")
	}
}

// TestGateEndsSlowPeers: a peer that sends nothing loses its place after a time. A peer refused
// by may never gets one.
func TestGateEndsSlowPeers(t *testing.T) {
	g, dial := gateOf(t, protocol.NewSecret(), anybody)
	g.timeout = 20 * time.Millisecond
	_ = admit(g)
	began := time.Now()
	slow := dial()
	if _, err := slow.Write(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "slow", slow)
	if took := time.Since(began); took < g.timeout {
		t.Errorf("it was sent away after %v", took)
	}

	g, dial = gateOf(t, protocol.NewSecret(), func(net.Addr) bool { return false })
	_ = admit(g)
	wantRefused(t, "stranger", dial())
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) != 0 {
		t.Errorf("%d wait", len(g.waiting))
	}
}

// TestGateIsNotStarved: many silent peers cost the guest little, and the host still gets in.
func TestGateIsNotStarved(t *testing.T) {
	secret := protocol.NewSecret()
	g, dial := gateOf(t, secret, anybody)
	admitted := admit(g)
	for range 5 * gatePlaces {
		dial()
		g.mu.Lock()
		if n := len(g.waiting); n > gatePlaces {
			t.Fatalf("%d wait", n)
		}
		g.mu.Unlock()
	}
	host := dial()
	if _, err := host.Write(secret[:]); err != nil {
		t.Fatal(err)
	}
	wantAdmitted(t, host, admitted)
}

func TestGateEndsWithItsListener(t *testing.T) {
	g, dial := gateOf(t, protocol.NewSecret(), anybody)
	admitted := admit(g)
	waits := dial()
	_ = g.listener.Close()
	select {
	case a := <-admitted:
		if a.err == nil {
			t.Error("somebody was let in")
		}
	case <-time.After(patience):
		t.Fatal("admit still waits")
	}
	wantRefused(t, "who waited", waits)
}

func TestIsHost(t *testing.T) {
	for _, c := range []struct {
		peer net.Addr
		want bool
	}{
		{&vsock.Addr{ContextID: unix.VMADDR_CID_HOST, Port: 1023}, true},
		{&vsock.Addr{ContextID: unix.VMADDR_CID_HOST, Port: 1}, true},
		{&vsock.Addr{ContextID: unix.VMADDR_CID_HOST, Port: 1024}, false},
		{&vsock.Addr{ContextID: unix.VMADDR_CID_HOST, Port: unix.VMADDR_PORT_ANY}, false},
		{&vsock.Addr{ContextID: unix.VMADDR_CID_LOCAL, Port: 1023}, false},
		{&vsock.Addr{ContextID: unix.VMADDR_CID_HYPERVISOR, Port: 1023}, false},
		{&vsock.Addr{ContextID: 4242, Port: 1023}, false},
		{&net.UnixAddr{}, false},
		{nil, false},
	} {
		if got := isHost(c.peer); got != c.want {
			t.Errorf("isHost(%v) = %v", c.peer, got)
		}
	}
}

// TestAwaitCID: a clone has the cid of its template for a moment.
func TestAwaitCID(t *testing.T) {
	looks := 0
	err := awaitCID(5, time.Minute, func() (uint32, error) {
		switch looks++; looks {
		case 1:
			return 0, unix.ENODEV
		case 2:
			return 4, nil
		}
		return 5, nil
	})
	if err != nil || looks != 3 {
		t.Errorf("after %d looks: %v", looks, err)
	}
	err = awaitCID(5, 10*time.Millisecond, func() (uint32, error) { return 4, nil })
	if err == nil || !strings.Contains(err.Error(), "cid 5") || !strings.Contains(err.Error(), "has 4") {
		t.Errorf("a cid that never comes: %v", err)
	}
}
