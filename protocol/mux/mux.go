// Package mux carries many streams over the one byte path of a virtio-serial
// port: hashicorp/yamux with the settings, the real half-close and the limits
// both ends of husk's agent channel need. The host opens every stream.
package mux

import (
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	// MaxStreams is how many streams one session holds open, and so how many may
	// wait to be accepted.
	MaxStreams = 1024

	// hostWindow is how much one output stream may have in flight to a reader on
	// the host that does not read. A larger one buys no throughput under
	// emulation.
	hostWindow = 1 << 20
	// guestWindow is the same for stdin in the guest, where memory is dear:
	// yamux's smallest.
	guestWindow = 256 << 10

	// forever disables yamux's safety timeout for writes. A paused VM or a
	// template being saved moves no byte for as long as it likes, and a timeout
	// would lose the frame that waits.
	forever = 100 * 365 * 24 * time.Hour
)

// Session is one multiplexed channel.
type Session struct {
	session *yamux.Session
	conn    *frameConn
}

// Host starts a session on the host's end of the channel. The peer is hostile:
// it cannot open streams or ping, and what it sends beyond a stream's window
// ends the session.
func Host(conn io.ReadWriteCloser) (*Session, error) {
	fc := &frameConn{ReadWriteCloser: conn, guard: &guard{}}
	s, err := yamux.Client(fc, config(hostWindow))
	if err != nil {
		return nil, fmt.Errorf("start channel: %w", err)
	}
	return &Session{session: s, conn: fc}, nil
}

// Guest starts a session on the guest's end.
func Guest(conn io.ReadWriteCloser) (*Session, error) {
	fc := &frameConn{ReadWriteCloser: conn}
	s, err := yamux.Server(fc, config(guestWindow))
	if err != nil {
		return nil, fmt.Errorf("start channel: %w", err)
	}
	return &Session{session: s, conn: fc}, nil
}

func config(window uint32) *yamux.Config {
	return &yamux.Config{
		// Equal on both sides: it also bounds the opens in flight.
		AcceptBacklog:          MaxStreams,
		KeepAliveInterval:      forever,
		ConnectionWriteTimeout: forever,
		MaxStreamWindowSize:    window,
		// Both zero: yamux would end the whole session when a slow guest is late
		// with an answer, and reset a half-closed stdin whose bytes the process
		// has not read yet.
		StreamOpenTimeout:  0,
		StreamCloseTimeout: 0,
		// One line per odd frame would let the peer fill a log; the session's
		// error says what matters.
		Logger: log.New(io.Discard, "", 0),
	}
}

// Open opens a stream. It blocks while the channel takes no bytes, until Close.
func (s *Session) Open() (*Stream, error) {
	if s.session.NumStreams() >= MaxStreams {
		return nil, fmt.Errorf("open stream: %d are open already", MaxStreams)
	}
	st, err := s.session.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", s.cause(err))
	}
	return &Stream{Stream: st}, nil
}

// Accept returns the next stream the host opened, or an error once the session
// has ended.
func (s *Session) Accept() (net.Conn, error) {
	st, err := s.session.AcceptStream()
	if err != nil {
		return nil, fmt.Errorf("accept stream: %w", s.cause(err))
	}
	return &Stream{Stream: st}, nil
}

// Done is closed when the session has ended, for whatever reason.
func (s *Session) Done() <-chan struct{} { return s.session.CloseChan() }

// Err says what the peer did that ended the session, nil if it broke no rule.
func (s *Session) Err() error { return s.conn.violation() }

// Close ends the session, its streams and the connection below it.
func (s *Session) Close() error { return s.session.Close() }

// Addr implements net.Listener.
func (s *Session) Addr() net.Addr { return s.session.Addr() }

// cause prefers the broken rule over yamux's "session shutdown".
func (s *Session) cause(err error) error {
	if v := s.conn.violation(); v != nil {
		return v
	}
	return err
}

// Stream is one stream. yamux's own Close is a half-close: it ends the writing
// side, and reads go on until the peer's half-close.
type Stream struct {
	*yamux.Stream
	closeOnce sync.Once
}

// CloseWrite ends the writing side; the peer reads end-of-file after the last byte.
func (s *Stream) CloseWrite() error { return s.Stream.Close() }

// Close ends the stream in both directions as seen from here: a Read that waits
// returns. It does not wait for the channel, which a stalled peer may block.
func (s *Stream) Close() error {
	s.closeOnce.Do(func() {
		past := time.Unix(1, 0)
		_ = s.Stream.SetDeadline(past)
		go func() { _ = s.Stream.Close() }()
	})
	return nil
}
