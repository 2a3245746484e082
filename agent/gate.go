package main

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/huskvm/husk/protocol"
)

const (
	// gatePlaces is how many connections may be let in but not have shown the
	// secret yet. Each costs a goroutine and what its socket holds.
	gatePlaces = 64
	// gateTimeout bounds how long each may take. The host sends the secret as soon
	// as it is connected.
	gateTimeout = 10 * time.Second
)

// gate lets in one connection, the first that begins with the secret, and closes
// the listener then: who comes later finds no port. Until then anybody may come.
//
// Who comes when all places are taken takes the place of who has waited longest,
// so that silent strangers do not keep the host out. The host dials again when its
// place is taken so.
type gate struct {
	listener net.Listener
	secret   protocol.Secret
	may      func(net.Addr) bool // who is not sent away at once
	timeout  time.Duration
	admitted chan net.Conn

	mu      sync.Mutex
	waiting []net.Conn // who has waited longest first
	closed  bool
}

func newGate(l net.Listener, secret protocol.Secret, may func(net.Addr) bool) *gate {
	return &gate{listener: l, secret: secret, may: may, timeout: gateTimeout, admitted: make(chan net.Conn, 1)}
}

// admit returns the connection that has shown the secret, which has been told so.
func (g *gate) admit() (net.Conn, error) {
	failed := make(chan error, 1)
	go func() { failed <- g.accept() }()
	select {
	case conn := <-g.admitted:
		g.close()
		if err := protocol.WriteStreamAck(conn, nil); err != nil {
			_ = conn.Close()
			return nil, err
		}
		return conn, nil
	case err := <-failed:
		g.close()
		return nil, fmt.Errorf("wait for the host on the agent channel: %w", err)
	}
}

// accept returns when the listener fails, as by close.
func (g *gate) accept() error {
	for {
		conn, err := g.listener.Accept()
		if err != nil {
			return err
		}
		if !g.may(conn.RemoteAddr()) || !g.place(conn) {
			_ = conn.Close()
			continue
		}
		go g.judge(conn)
	}
}

func (g *gate) judge(conn net.Conn) {
	known := g.knows(conn)
	if g.leave(conn) && known {
		select {
		case g.admitted <- conn:
			return
		default: // another has been
		}
	}
	_ = conn.Close()
}

// place gives conn a place, if need be another's.
func (g *gate) place(conn net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	if len(g.waiting) == gatePlaces {
		_ = g.waiting[0].Close() // its goroutine finds that it has no place any more
		g.waiting = slices.Delete(g.waiting, 0, 1)
	}
	g.waiting = append(g.waiting, conn)
	return true
}

// leave says whether conn still had its place.
func (g *gate) leave(conn net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting, conn)
	if i < 0 {
		return false
	}
	g.waiting = slices.Delete(g.waiting, i, i+1)
	return true
}

// knows reads what conn begins with, and not one byte more.
func (g *gate) knows(conn net.Conn) bool {
	if conn.SetDeadline(time.Now().Add(g.timeout)) != nil {
		return false
	}
	var shown [protocol.SecretSize]byte
	if _, err := io.ReadFull(conn, shown[:]); err != nil || !g.secret.Equal(shown[:]) {
		return false
	}
	return conn.SetDeadline(time.Time{}) == nil
}

// close ends the listener and whoever waits.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	_ = g.listener.Close()
	for _, conn := range g.waiting {
		_ = conn.Close()
	}
	g.waiting = nil
}
