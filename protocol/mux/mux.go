// Package mux carries many streams over one byte path, such as a virtio-serial port. It is
// hashicorp/yamux with the settings, the half-close and the limits that both ends of the agent
// channel need. The host opens every stream.
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
	// MaxStreams bounds the streams that a session may have open, and so the streams that wait
	// for Accept.
	MaxStreams = 1024

	// hostWindow bounds the bytes of one output stream that wait on the host for a reader. A
	// larger window does not increase throughput under emulation.
	hostWindow = 1 << 20
	// guestWindow bounds the bytes of one stdin stream that wait in the guest. It is yamux's
	// minimum, because the guest's memory is small.
	guestWindow = 256 << 10

	// forever disables yamux's timeout for writes. A paused VM, or one that is being saved as a
	// template, moves no bytes for any length of time, and after a timeout the frame that waits
	// would be lost.
	forever = 100 * 365 * 24 * time.Hour
)

// Session is one multiplexed channel.
type Session struct {
	session *yamux.Session
	conn    *frameConn
}

// Host starts a session on the host's end of the channel. The peer is treated as hostile: the
// session ends with ErrProtocol if it opens a stream, sends a ping or sends more than a
// stream's window.
func Host(conn io.ReadWriteCloser) (*Session, error) {
	fc := &frameConn{ReadWriteCloser: conn, guard: newGuard()}
	s, err := yamux.Client(fc, config(hostWindow))
	if err != nil {
		return nil, fmt.Errorf("start channel: %w", err)
	}
	return &Session{session: s, conn: fc}, nil
}

// Guest starts a session on the guest's end of the channel.
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
		// Both sides have the same value, because it also bounds the streams that the host is
		// opening.
		AcceptBacklog:          MaxStreams,
		KeepAliveInterval:      forever,
		ConnectionWriteTimeout: forever,
		MaxStreamWindowSize:    window,
		// 0 disables both. yamux would end the whole session if a slow guest answers late, and
		// would reset a stdin stream after its half-close while the process has not read
		// everything.
		StreamOpenTimeout:  0,
		StreamCloseTimeout: 0,
		// A log line for each odd frame would let the peer fill a log. The session's error says
		// what is needed.
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

// Accept returns the next stream that the host has opened. After the session has ended it
// returns an error.
func (s *Session) Accept() (net.Conn, error) {
	st, err := s.session.AcceptStream()
	if err != nil {
		return nil, fmt.Errorf("accept stream: %w", s.cause(err))
	}
	return &Stream{Stream: st}, nil
}

// Done returns a channel that is closed when the session has ended, for whatever reason.
func (s *Session) Done() <-chan struct{} { return s.session.CloseChan() }

// Err returns which rule the peer has broken, as an error that wraps ErrProtocol. It is nil if
// the peer broke none.
func (s *Session) Err() error { return s.conn.violation() }

// Close ends the session with its streams and closes the connection below it.
func (s *Session) Close() error { return s.session.Close() }

// Addr implements net.Listener.
func (s *Session) Addr() net.Addr { return s.session.Addr() }

// cause returns the rule that the peer has broken instead of yamux's "session shutdown".
func (s *Session) cause(err error) error {
	if v := s.conn.violation(); v != nil {
		return v
	}
	return err
}

// Stream is one stream. Close of the embedded yamux stream is a half-close: it ends the writing
// direction only, and reads go on until the peer's half-close.
type Stream struct {
	*yamux.Stream
	closeOnce sync.Once
}

// CloseWrite ends the writing direction. The peer reads end-of-file after the last byte.
func (s *Stream) CloseWrite() error { return s.Stream.Close() }

// Close ends the stream in both directions on this side: a pending Read returns. It does not
// wait for the channel, which a stalled peer may block.
func (s *Stream) Close() error {
	s.closeOnce.Do(func() {
		past := time.Unix(1, 0)
		_ = s.Stream.SetDeadline(past)
		go func() { _ = s.Stream.Close() }()
	})
	return nil
}
