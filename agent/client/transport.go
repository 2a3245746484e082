package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/agent/protocol"
	"github.com/huskvm/husk/agent/protocol/mux"
	"github.com/huskvm/husk/timings"
)

// Transport is a VM's byte path to its agent, not yet spoken on.
type Transport interface {
	// connect waits for the agent, does the handshake and closes the transport
	// when that fails.
	connect(ctx context.Context, build string) (link, error)
	// Close gives up a transport that was never connected.
	Close() error
}

// Serial is the host's end of a virtio-serial port; Connect takes it over.
func Serial(conn net.Conn) Transport { return serial{conn} }

type serial struct{ conn net.Conn }

func (t serial) Close() error { return t.conn.Close() }

func (t serial) connect(ctx context.Context, build string) (link, error) {
	if err := greet(ctx, t.conn, build); err != nil {
		_ = t.conn.Close()
		return nil, err
	}
	timings.Lap(ctx, "agent answers")
	session, err := mux.Host(t.conn)
	if err != nil {
		_ = t.conn.Close()
		return nil, err
	}
	return serialLink{session}, nil
}

// greet is protocol.Greet ended by ctx.
func greet(ctx context.Context, conn net.Conn, build string) error {
	stop := deadlineFrom(ctx, conn)
	err := protocol.Greet(conn, build)
	if !stop() {
		return fmt.Errorf("handshake: no answer: %w", ctx.Err())
	}
	return err
}

type serialLink struct{ session *mux.Session }

func (l serialLink) open(context.Context) (streamConn, error) {
	s, err := l.session.Open()
	if err != nil {
		return nil, err // not s, which as a streamConn would not be nil
	}
	return s, nil
}

func (l serialLink) done() <-chan struct{} { return l.session.Done() }
func (l serialLink) err() error            { return l.session.Err() }
func (l serialLink) close()                { _ = l.session.Close() }

// ListenVsock opens the host's end for the guest with this context id: the agent
// dials the host at the port whose number is its cid. Listen before the VM
// starts, so that the first dial finds it. An error that wraps
// syscall.EADDRINUSE means that the cid is in use by another VM.
func ListenVsock(cid uint32) (Transport, error) {
	// Any local cid: in a nested host the cid the guest dials (2) is not the one
	// the socket layer takes for local.
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, cid, nil)
	if err != nil {
		return nil, fmt.Errorf("listen for the agent of cid %d: %w", cid, err)
	}
	return &vsockTransport{cid: cid, listener: l}, nil
}

// Vsock is ListenVsock at the time of Connect, for a VM that runs already: the
// agent dials until somebody listens.
func Vsock(cid uint32) Transport { return &vsockTransport{cid: cid} }

type vsockTransport struct {
	cid      uint32
	listener *vsock.Listener
}

func (t *vsockTransport) Close() error {
	if t.listener == nil {
		return nil
	}
	return t.listener.Close()
}

func (t *vsockTransport) connect(ctx context.Context, build string) (link, error) {
	if t.listener == nil {
		listening, err := ListenVsock(t.cid)
		if err != nil {
			return nil, err
		}
		t.listener = listening.(*vsockTransport).listener
	}
	defer func() { _ = t.listener.Close() }()
	for {
		conn, err := t.accept(ctx)
		if err != nil {
			return nil, err
		}
		err = greet(ctx, conn, build)
		if err == nil {
			timings.Lap(ctx, "agent answers")
			return newVsockLink(t.cid, conn), nil
		}
		_ = conn.Close()
		// An agent that gave its dial up just before it was accepted dials again.
		if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			return nil, err
		}
	}
}

// accept waits for the agent to dial.
func (t *vsockTransport) accept(ctx context.Context) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = t.listener.Close() })
	defer stop()
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, fmt.Errorf("wait for the agent of cid %d: %w", t.cid, err)
		}
		// Any guest of this host may dial this port.
		if peer, ok := conn.RemoteAddr().(*vsock.Addr); ok && peer.ContextID == t.cid {
			return conn, nil
		}
		_ = conn.Close()
	}
}

// AwaitVsock waits until the agent with this cid has dialled and says nothing to
// it: the agent waits for a greeting until the result is closed, or until it
// wakes up as a clone, whose kernel resets the connection.
func AwaitVsock(ctx context.Context, cid uint32) (io.Closer, error) {
	t, err := ListenVsock(cid)
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Close() }()
	return t.(*vsockTransport).accept(ctx)
}

// vsockLink keeps the connection the agent made: it breaks when the VM ends.
type vsockLink struct {
	cid   uint32
	hello net.Conn
	ended chan struct{}
}

func newVsockLink(cid uint32, hello net.Conn) *vsockLink {
	l := &vsockLink{cid: cid, hello: hello, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		// The agent has nothing more to say here: a byte is as good as the end.
		_, _ = hello.Read(make([]byte, 1))
		_ = hello.Close()
	}()
	return l
}

func (l *vsockLink) open(ctx context.Context) (streamConn, error) {
	conn, err := vsock.DialContext(ctx, l.cid, protocol.StreamVsockPort, nil)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	return conn, nil
}

func (l *vsockLink) done() <-chan struct{} { return l.ended }
func (l *vsockLink) err() error            { return nil }
func (l *vsockLink) close()                { _ = l.hello.Close() }
