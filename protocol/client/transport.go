package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/mux"
)

// Transport is the byte path between a VM and its agent. Nothing has been sent on it yet.
type Transport struct {
	port net.Conn // the host's end of a virtio-serial port
	cid  uint32   // context id of the vsock device; 0: none
	// dial makes a socket for the agent's vsock port.
	dial func() (dialer, error)
}

// Serial returns a transport that uses the host's end of a virtio-serial port for everything.
// Connect takes the port over.
func Serial(port net.Conn) Transport { return Transport{port: port} }

// Vsock returns a transport that uses the host's end of a virtio-serial port for the greeting,
// and a vsock connection to the guest with this context id for the streams. Only the VM's own
// QEMU can send on the port. Connect takes the port over.
func Vsock(port net.Conn, cid uint32) Transport {
	return Transport{port: port, cid: cid, dial: func() (dialer, error) { return reservePort() }}
}

// dialer is a socket of the host that is bound and not connected.
type dialer interface {
	// connect may be called once. After an error the dialer is closed.
	connect(ctx context.Context, cid uint32) (sessionConn, error)
	Close() error
}

type sessionConn interface {
	io.ReadWriteCloser
	SetDeadline(t time.Time) error
}

// The pause between two dials grows from the first value to the last. No event tells when the
// agent has room again.
const (
	firstDialPause = time.Millisecond
	lastDialPause  = 50 * time.Millisecond
)

// connect waits for the agent and does the handshake. After an error the transport is closed.
func (t Transport) connect(ctx context.Context, build string) (*link, error) {
	conn, err := t.meet(ctx, build)
	if err != nil {
		_ = t.port.Close()
		return nil, err
	}
	timings.Lap(ctx, "agent answers")
	session, err := mux.Host(conn)
	if err != nil {
		_ = conn.Close()
		_ = t.port.Close()
		return nil, err
	}
	l := &link{session: session, port: t.port}
	if conn != sessionConn(t.port) {
		go l.watchPort()
	}
	return l, nil
}

// meet does the handshake and returns the connection for the session.
func (t Transport) meet(ctx context.Context, build string) (sessionConn, error) {
	var offer protocol.Offer
	var first dialer
	if t.cid != 0 {
		var err error
		first, err = t.dial()
		switch {
		case err == nil:
			offer = protocol.Offer{VsockCID: t.cid, Secret: protocol.NewSecret()}
		case !errors.Is(err, unix.EADDRINUSE):
			return nil, err
		default:
			// All reserved ports of the host are in use, so the serial port carries the streams
			// as well.
		}
	}
	if err := greet(ctx, t.port, build, offer); err != nil {
		if first != nil {
			_ = first.Close()
		}
		return nil, err
	}
	if first == nil {
		return t.port, nil
	}
	return t.dialAgent(ctx, first, offer)
}

// greet calls protocol.Greet, and ends it when ctx ends.
func greet(ctx context.Context, conn net.Conn, build string, o protocol.Offer) error {
	stop := deadlineFrom(ctx, conn)
	err := protocol.Greet(conn, build, o)
	if !stop() {
		return fmt.Errorf("handshake: no answer: %w", ctx.Err())
	}
	return err
}

// dialAgent dials until the agent has accepted the secret. Other processes that dial at the
// same time may fill the agent's queue, take this host's place in it, or use all reserved ports
// of the host.
func (t Transport) dialAgent(ctx context.Context, d dialer, o protocol.Offer) (sessionConn, error) {
	for pause := firstDialPause; ; pause = min(2*pause, lastDialPause) {
		var err error
		if d == nil { // a new port, because the kernel may keep the last one in use for a while
			d, err = t.dial()
		}
		if err == nil {
			var conn sessionConn
			if conn, err = showSecret(ctx, d, o); err == nil {
				return conn, nil
			}
		}
		d = nil
		if !mayPass(err) {
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("dial the agent: %w (%w)", ctx.Err(), err)
		}
	}
}

// mayPass says whether a dial failed in a way that other processes can cause: it was refused,
// or ended before the agent answered. Dialing again may succeed then.
func mayPass(err error) bool {
	for _, passing := range []error{io.ErrUnexpectedEOF, unix.ECONNRESET, unix.ENOTCONN, unix.EPIPE, unix.ETIMEDOUT, unix.EADDRINUSE} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

func showSecret(ctx context.Context, d dialer, o protocol.Offer) (sessionConn, error) {
	conn, err := d.connect(ctx, o.VsockCID)
	if err != nil {
		return nil, err
	}
	stop := deadlineFrom(ctx, conn)
	_, err = conn.Write(o.Secret[:])
	if err == nil {
		err = protocol.ReadStreamAck(conn)
	}
	if !stop() {
		err = fmt.Errorf("show the agent its secret: no answer: %w", ctx.Err())
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// link is the session with the agent after the handshake.
type link struct {
	session *mux.Session
	port    net.Conn
}

// open opens a stream; its header is not sent yet. It blocks while the channel takes no bytes,
// until close.
func (l *link) open() (streamConn, error) {
	s, err := l.session.Open()
	if err != nil {
		return nil, err // a nil *mux.Stream in a streamConn would not equal nil
	}
	return s, nil
}

// done returns a channel that is closed when the session has ended.
func (l *link) done() <-chan struct{} { return l.session.Done() }

// err says which rule of the protocol the guest has broken; nil if none.
func (l *link) err() error { return l.session.Err() }

func (l *link) close() {
	_ = l.session.Close()
	_ = l.port.Close()
}

// watchPort ends a session on vsock when the serial port ends, because then QEMU has ended. The
// agent must not send on the port any more, so a byte there ends the session too.
func (l *link) watchPort() {
	_, _ = l.port.Read(make([]byte, 1))
	l.close()
}
