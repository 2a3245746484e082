// Package client is the host's side of the agent channel.
//
// The guest may be hostile, and everything that comes from it is treated so: sizes are bounded,
// each wait ends with the caller's context, and texts are made printable.
//
// The order of use: Connect, then Hello on the control service, then Create, the container's
// streams, Start and Wait. Close ends everything.
package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/huskvm/husk/protocol"
)

// Bounds of the pending calls and streams. A channel that is stuck costs at most so many
// goroutines. A Wait is a call that lasts as long as its process.
const (
	maxOpens = 128
	maxCalls = 2048
)

// ErrClosed is returned by a Client whose channel has ended.
var ErrClosed = errors.New("agent channel is closed")

// Stream is one raw stream of bytes to or from the guest.
//
// On a stdin stream Read returns io.EOF when the process no longer reads its input. On an
// output stream Read returns io.EOF after the last byte of the process. Close or CloseWrite
// before that tells the process that its reader is gone.
type Stream = protocol.HalfCloser

type streamConn = protocol.HalfCloseConn

// Client is a connection to the agent of one VM. All methods may be called by many goroutines
// at once.
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

// Connect does the handshake on the VM's channel and opens the control stream. ctx bounds both,
// and so the guest's boot; later it has no effect. The error for an agent of another build or
// protocol version wraps protocol.ErrMismatch. After an error the transport is closed.
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
	c.calls = newReplyGuard(conn)
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

// Control returns the agent's service. A call returns at the latest when its context ends. An
// error that the agent has returned is an *AgentError.
func (c *Client) Control() protocol.AgentService { return c.control }

// Done returns a channel that is closed when the agent channel has broken or Close was called.
func (c *Client) Done() <-chan struct{} { return c.closed }

// Err returns nil before Done is closed. Afterwards it returns ErrClosed or an error that wraps
// it and names the cause.
func (c *Client) Err() error {
	select {
	case <-c.closed:
		return c.cause
	default:
		return nil
	}
}

// Close ends the agent channel with all its streams and calls. It may be called again.
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

// Stream opens one stream and returns when the agent has attached it. The process must exist:
// open a container's streams between Create and Start, and those of an exec'd process between
// Exec and Wait. ctx bounds the opening only.
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
	// A write to a channel that the guest does not read cannot be interrupted. It runs in its
	// own goroutine so that the caller can return when ctx ends.
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

// blame returns the reason why the channel has ended, if it has, instead of err.
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

// deadlineFrom makes reads and writes of conn fail when ctx ends. stop undoes that, and returns
// false if ctx ended before.
func deadlineFrom(ctx context.Context, conn interface{ SetDeadline(t time.Time) error }) (stop func() bool) {
	stopAfter := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() bool {
		return stopAfter() && conn.SetDeadline(time.Time{}) == nil
	}
}
