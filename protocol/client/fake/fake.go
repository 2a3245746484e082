// Package fake plays the agent of a guest inside a test's process, so that the host's side of
// the channel can be tested without a VM.
package fake

import (
	"context"
	"io"
	"net"
	"sync"

	"github.com/containerd/ttrpc"

	"github.com/huskvm/husk/linux/syscalls"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/mux"
)

// Pair returns the two ends of a channel that behaves like a virtio-serial port.
func Pair() (host, guest net.Conn, err error) {
	a, b, err := syscalls.ConnPair("channel")
	if err != nil {
		return nil, nil, err
	}
	return a, b, nil
}

// Streams answers the handshake as an agent of the given build. Then it reads the header of
// each stream that the host opens and calls serve. It returns when the channel ends.
func Streams(channel net.Conn, build string, serve func(protocol.StreamHeader, net.Conn)) error {
	if err := protocol.Answer(channel, build, func(protocol.Offer) error { return nil }); err != nil {
		return err
	}
	return Session(channel, serve)
}

// Session does what Streams does, without the handshake.
func Session(channel net.Conn, serve func(protocol.StreamHeader, net.Conn)) error {
	session, err := mux.Guest(channel)
	if err != nil {
		return err
	}
	for {
		s, err := session.Accept()
		if err != nil {
			return err
		}
		h, err := protocol.ReadStreamHeader(s)
		if err != nil {
			return err
		}
		go serve(h, s)
	}
}

// Control serves the agent's service on a control stream until the stream ends.
func Control(ctx context.Context, s net.Conn, service protocol.AgentService) error {
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	protocol.RegisterAgentService(server, service)
	if err := protocol.WriteStreamAck(s, nil); err != nil {
		return err
	}
	one := &listener{conn: &closing{Conn: s, closed: make(chan struct{})}}
	return server.Serve(ctx, one)
}

// Echo sends back what it reads until the host closes its direction.
func Echo(s net.Conn) {
	// Both may fail, because the host may hang up at any time.
	_ = protocol.WriteStreamAck(s, nil)
	_, _ = io.Copy(s, s)
	_ = s.(*mux.Stream).CloseWrite()
}

// listener returns one connection, and fails when that connection has ended.
type listener struct {
	conn  *closing
	given bool
}

func (l *listener) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.conn, nil
	}
	<-l.conn.closed
	return nil, net.ErrClosed
}

func (l *listener) Close() error   { return l.conn.Close() }
func (l *listener) Addr() net.Addr { return &net.UnixAddr{} }

// closing reports its close.
type closing struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
