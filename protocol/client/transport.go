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

// Transport is a VM's byte path to its agent, not yet spoken on.
type Transport struct {
	port net.Conn // the host's end of a virtio-serial port
	cid  uint32   // 0: none
	// dial makes the connections to the agent's vsock port.
	dial func() (dialer, error)
}

// Serial carries greeting and streams over the host's end of a virtio-serial port;
// Connect takes the port over.
func Serial(port net.Conn) Transport { return Transport{port: port} }

// Vsock carries the greeting over the host's end of a virtio-serial port, which
// nobody but its QEMU can speak on, and the streams over a vsock connection to the
// guest with that context id. Connect takes the port over.
func Vsock(port net.Conn, cid uint32) Transport {
	return Transport{port: port, cid: cid, dial: func() (dialer, error) { return reservePort() }}
}

// dialer is a socket of the host's, bound but not connected.
type dialer interface {
	// connect may be called once. On error the dialer is closed.
	connect(ctx context.Context, cid uint32) (sessionConn, error)
	Close() error
}

type sessionConn interface {
	io.ReadWriteCloser
	SetDeadline(t time.Time) error
}

// The pause between two dials grows from the first to the last: no event says that
// a stranger has made room.
const (
	firstDialPause = time.Millisecond
	lastDialPause  = 50 * time.Millisecond
)

// connect waits for the agent, does the handshake and closes the transport when
// that fails.
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

// meet does the handshake and returns what the session is to run on.
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
			// Others have all of the host's reserved ports. The serial port does too.
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

// greet is protocol.Greet ended by ctx.
func greet(ctx context.Context, conn net.Conn, build string, o protocol.Offer) error {
	stop := deadlineFrom(ctx, conn)
	err := protocol.Greet(conn, build, o)
	if !stop() {
		return fmt.Errorf("handshake: no answer: %w", ctx.Err())
	}
	return err
}

// dialAgent dials until the agent takes the secret. Strangers who dial at the same
// time may have filled the agent's queue, or taken the place of this host there, or
// all of the host's reserved ports.
func (t Transport) dialAgent(ctx context.Context, d dialer, o protocol.Offer) (sessionConn, error) {
	for pause := firstDialPause; ; pause = min(2*pause, lastDialPause) {
		var err error
		if d == nil { // another port: the kernel may keep the last for a while
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

// mayPass tells what strangers can do to a dial, which was refused or ended before
// the agent's word, from other failures.
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

// link is what a transport gives once the agent has answered.
type link struct {
	session *mux.Session
	port    net.Conn
}

// open opens a stream, header not yet sent. It waits while the channel takes no
// bytes; close ends it.
func (l *link) open() (streamConn, error) {
	s, err := l.session.Open()
	if err != nil {
		return nil, err // not s, which as a streamConn would not be nil
	}
	return s, nil
}

// done is closed when the channel has ended.
func (l *link) done() <-chan struct{} { return l.session.Done() }

// err says which rule the guest broke, nil if none.
func (l *link) err() error { return l.session.Err() }

func (l *link) close() {
	_ = l.session.Close()
	_ = l.port.Close()
}

// watchPort ends the session with the serial port that it does not run on: QEMU
// has ended then. The agent has nothing more to say on the port, so a byte is as
// good as the end.
func (l *link) watchPort() {
	_, _ = l.port.Read(make([]byte, 1))
	l.close()
}
