// Package fake plays the agent of a guest within a test's process, so that what
// sits on the host's end of the channel is tested without a VM.
package fake

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/mux"
)

// Pair returns the two ends of a channel such as a virtio-serial port gives.
func Pair() (host, guest net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "channel")
		conns[i], err = net.FileConn(f)
		_ = f.Close() // the connection has its own
		if err != nil {
			return nil, nil, fmt.Errorf("wrap socket pair: %w", err)
		}
	}
	return conns[0], conns[1], nil
}

// Streams answers the handshake as an agent of that build, then hands each stream
// that the host opens to serve, its header read. It returns when the channel ends.
func Streams(channel net.Conn, build string, serve func(protocol.StreamHeader, net.Conn)) error {
	if err := protocol.Answer(channel, build, func(protocol.Offer) error { return nil }); err != nil {
		return err
	}
	return Session(channel, serve)
}

// Session is Streams without the handshake.
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

// Control serves the agent's service on a control stream until it ends.
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

// Echo sends back what it reads until the host's half of the stream ends.
func Echo(s net.Conn) {
	// Either may fail: the host hangs up when it likes.
	_ = protocol.WriteStreamAck(s, nil)
	_, _ = io.Copy(s, s)
	_ = s.(*mux.Stream).CloseWrite()
}

// listener gives one connection, and ends when that does.
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

// closing tells when it is closed.
type closing struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
