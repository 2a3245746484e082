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
	// gatePlaces bounds the connections that have been accepted and have not shown the secret
	// yet. Each costs a goroutine and a socket's memory.
	gatePlaces = 64
	// gateTimeout bounds how long a connection may take to show the secret. The host sends it
	// as soon as it is connected.
	gateTimeout = 10 * time.Second
)

// gate accepts one connection: the first that begins with the secret. Then it closes the
// listener, so that later peers find no port. Until then any peer may connect.
//
// If all places are taken, a new peer gets the place of the one that has waited longest, so
// that peers that stay silent cannot keep the host out. If the host loses its place in that
// way, it dials again.
type gate struct {
	listener net.Listener
	secret   protocol.Secret
	may      func(net.Addr) bool // says which peers are not closed at once
	timeout  time.Duration
	admitted chan net.Conn

	mu      sync.Mutex
	waiting []net.Conn // the one that has waited longest comes first
	closed  bool
}

func newGate(l net.Listener, secret protocol.Secret, may func(net.Addr) bool) *gate {
	return &gate{listener: l, secret: secret, may: may, timeout: gateTimeout, admitted: make(chan net.Conn, 1)}
}

// admit waits for a connection that shows the secret, confirms the secret to it, and returns
// it.
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

// accept accepts connections until the listener fails, as it does after close.
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
		default: // another connection has been admitted
		}
	}
	_ = conn.Close()
}

// place gives conn a place. If none is free, it takes the place of the one that has waited
// longest. It returns false after close.
func (g *gate) place(conn net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	if len(g.waiting) == gatePlaces {
		_ = g.waiting[0].Close() // its goroutine notices that it has lost its place
		g.waiting = slices.Delete(g.waiting, 0, 1)
	}
	g.waiting = append(g.waiting, conn)
	return true
}

// leave gives up the place of conn. It returns false if conn had lost it before.
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

// knows says whether conn begins with the secret. It reads exactly the secret's length.
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

// close closes the listener and all connections that wait.
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
