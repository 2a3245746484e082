// Package client is the host's side of the agent channel. Everything that
// arrives on it was written by a guest that may be hostile: sizes are bounded,
// waiting ends with the caller's context, and no text of the guest is passed on
// unchecked.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/huskvm/husk/protocol"
)

// Bounds on what waits at once: a stuck channel costs no more goroutines than
// these. A Wait is a call that lasts as long as its process.
const (
	maxOpens = 128
	maxCalls = 2048
)

// ErrClosed is returned by what is called on a Client whose channel has ended.
var ErrClosed = errors.New("agent channel is closed")

// Stream is one raw byte stream to the guest.
//
// On a stdin stream Read returns io.EOF once the process no longer reads its
// input. On an output stream Read returns io.EOF after the process's last byte;
// Close or CloseWrite before that tells the process that its reader is gone.
type Stream interface {
	io.ReadWriteCloser
	// CloseWrite ends the writing side: the guest reads end-of-file after the
	// last byte written.
	CloseWrite() error
}

type streamConn interface {
	net.Conn
	CloseWrite() error
}

// Client is a connection to one VM's agent. Its methods are safe for concurrent use.
type Client struct {
	link    *link
	rpc     *ttrpc.Client
	control protocol.AgentService
	calls   *replyGuard
	opens   chan struct{}
	pending chan struct{}

	closing sync.Once
	closed  chan struct{}
	cause   error // set before closed is closed
}

// Connect does the handshake on the VM's channel and opens the control stream.
// ctx bounds both and thereby the guest's boot; it has no effect after that. An
// agent of another build or protocol version is refused with an error that wraps
// protocol.ErrMismatch. On error the transport is closed.
func Connect(ctx context.Context, t Transport, build string) (*Client, error) {
	l, err := t.connect(ctx, build)
	if err != nil {
		return nil, fmt.Errorf("connect to the agent: %w", err)
	}
	c := &Client{
		link:    l,
		opens:   make(chan struct{}, maxOpens),
		pending: make(chan struct{}, maxCalls),
		closed:  make(chan struct{}),
	}
	conn, err := c.stream(ctx, protocol.StreamHeader{Kind: protocol.StreamControl})
	if err != nil {
		l.close()
		return nil, fmt.Errorf("connect to the agent: %w", err)
	}
	c.calls = &replyGuard{streamConn: conn}
	c.rpc = ttrpc.NewClient(c.calls,
		ttrpc.WithUnaryClientInterceptor(c.intercept),
		ttrpc.WithOnClose(func() { c.fail(c.calls.violation()) }))
	c.control = protocol.NewAgentClient(c.rpc)
	go func() {
		select {
		case <-l.done():
			c.fail(l.err())
		case <-c.closed:
		}
	}()
	return c, nil
}

// Control returns the agent's service. A call returns when its context ends,
// answered or not; an error the agent answered with is an *AgentError.
func (c *Client) Control() protocol.AgentService { return c.control }

// Done is closed when the channel has broken or Close was called.
func (c *Client) Done() <-chan struct{} { return c.closed }

// Err says why the channel ended: nil before Done, ErrClosed or an error that
// wraps it after.
func (c *Client) Err() error {
	select {
	case <-c.closed:
		return c.cause
	default:
		return nil
	}
}

// Close ends the channel, every stream and every call on it. It is idempotent.
func (c *Client) Close() error {
	c.fail(nil)
	return nil
}

func (c *Client) fail(cause error) {
	c.closing.Do(func() {
		c.cause = ErrClosed
		if cause != nil {
			c.cause = fmt.Errorf("%w: %w", ErrClosed, cause)
		}
		close(c.closed)
		c.link.close()
		if c.rpc != nil {
			_ = c.rpc.Close()
		}
	})
}

// Stream opens one stream and returns when the agent has attached it. The
// process it names must exist: open a container's streams between Create and
// Start, those of an exec'd process after Exec and before Wait.
func (c *Client) Stream(ctx context.Context, header protocol.StreamHeader) (Stream, error) {
	if header.Kind == protocol.StreamControl {
		return nil, errors.New("open stream: the control stream is the client's own")
	}
	return c.stream(ctx, header)
}

func (c *Client) stream(ctx context.Context, header protocol.StreamHeader) (streamConn, error) {
	select {
	case c.opens <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("open stream: %w", ctx.Err())
	case <-c.closed:
		return nil, fmt.Errorf("open stream: %w", c.cause)
	}
	type result struct {
		conn streamConn
		err  error
	}
	results := make(chan result, 1)
	// In a goroutine of its own: a write to a channel the guest does not read
	// cannot be interrupted, and the caller must not wait for it.
	go func() {
		defer func() { <-c.opens }()
		conn, err := c.openStream(ctx, header)
		results <- result{conn, err}
	}()
	select {
	case r := <-results:
		if r.err != nil {
			return nil, c.blame(r.err)
		}
		return r.conn, nil
	case <-ctx.Done():
		go func() {
			if r := <-results; r.conn != nil {
				_ = r.conn.Close()
			}
		}()
		return nil, fmt.Errorf("open stream: %w", ctx.Err())
	}
}

// blame returns the channel's end, if it has ended, as the cause of what failed
// on it, else err.
func (c *Client) blame(err error) error {
	select {
	case <-c.link.done():
		c.fail(c.link.err())
		return fmt.Errorf("open stream: %w", c.Err())
	default:
		return err
	}
}

func (c *Client) openStream(ctx context.Context, header protocol.StreamHeader) (streamConn, error) {
	conn, err := c.link.open()
	if err != nil {
		return nil, err
	}
	stop := deadlineFrom(ctx, conn)
	err = header.Write(conn)
	if err == nil {
		err = protocol.ReadStreamAck(conn)
	}
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("open stream: %w", err)
	}
	return conn, nil
}

// deadlineFrom makes conn's reads and writes fail when ctx ends. stop undoes
// that and reports whether it came in time.
func deadlineFrom(ctx context.Context, conn interface{ SetDeadline(t time.Time) error }) (stop func() bool) {
	stopAfter := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() bool {
		return stopAfter() && conn.SetDeadline(time.Time{}) == nil
	}
}
