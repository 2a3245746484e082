package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/framing"
)

// maxErrorText bounds an error text from the guest, in bytes. Longer texts are cut.
const maxErrorText = 4096

// AgentError is an error that the agent has returned for a call. Text comes from the guest: it
// is one printable line of at most 4 KiB, and must not be trusted otherwise.
type AgentError struct {
	Code codes.Code // as in gRPC, such as codes.NotFound
	Text string
}

func (e *AgentError) Error() string { return e.Text }

// intercept is called for each call. It bounds the number of pending calls, returns when the
// call's context ends even if the channel takes no bytes, and turns the agent's status into an
// AgentError.
func (c *Client) intercept(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	select {
	case c.pending <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("call %s: %w", req.Method, ctx.Err())
	case <-c.closed:
		return fmt.Errorf("call %s: %w", req.Method, c.cause)
	}
	c.calls.asked.Add(1)
	// The deadline holds on the host only. A guest that knew of it would make a timer, which
	// under emulation costs more than most calls.
	req.TimeoutNano = 0
	// The call gets a response of its own, because it may be written to after the caller has
	// given up.
	answer := &ttrpc.Response{}
	done := make(chan error, 1)
	go func() {
		defer func() { <-c.pending }()
		// Without the caller's cancellation, because ttrpc logs a line for an answer that
		// nobody waits for.
		done <- invoke(context.WithoutCancel(ctx), req, answer)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return fmt.Errorf("call %s: %w", req.Method, ctx.Err())
	}
	if err != nil {
		// An error without a status means that the channel has ended, even if Done is not
		// closed yet. A request that is too large has a status.
		if _, ok := status.FromError(err); !ok {
			c.fail(c.calls.violation())
			err = c.Err()
		}
		return fmt.Errorf("call %s: %w", req.Method, err)
	}
	if st := answer.Status; st != nil && st.Code != int32(codes.OK) {
		return &AgentError{Code: codes.Code(st.Code), Text: printable(st.Message)}
	}
	resp.Payload = answer.Payload
	return nil
}

// printable turns a text of the guest into one line that is safe to print on a terminal and to
// write to a log.
func printable(s string) string {
	s = s[:min(len(s), maxErrorText)]
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
	if s = strings.TrimSpace(s); s == "" {
		return "the agent gave no reason"
	}
	return s
}

// Header of a ttrpc frame: length (4 bytes), stream id (4), type and flags.
const (
	rpcHeaderSize   = 10
	rpcTypeResponse = 0x2
)

// replyGuard is between ttrpc and the control stream. It ends the stream when more replies come
// than calls were made, or when a frame is no reply. ttrpc logs a line for each of those, so a
// hostile guest could fill the log.
type replyGuard struct {
	streamConn
	asked   atomic.Int64
	replies int64
	frames  *framing.Follower
}

func newReplyGuard(conn streamConn) *replyGuard {
	g := &replyGuard{streamConn: conn}
	g.frames = framing.New(rpcHeaderSize, g.judge)
	return g
}

func (g *replyGuard) Read(p []byte) (int, error) {
	n, err := g.streamConn.Read(p)
	if verr := g.frames.Follow(p[:n]); verr != nil {
		return 0, verr
	}
	return n, err
}

func (g *replyGuard) violation() error { return g.frames.Err() }

func (g *replyGuard) judge(header []byte) (bodySize uint64, err error) {
	size := binary.BigEndian.Uint32(header)
	g.replies++
	switch {
	case size > protocol.MaxMessage:
		return 0, fmt.Errorf("agent sent a message of %d bytes", size)
	case header[8] != rpcTypeResponse:
		return 0, fmt.Errorf("agent sent a message of type %#x", header[8])
	case g.replies > g.asked.Load():
		return 0, errors.New("agent answered more calls than were made")
	}
	return uint64(size), nil
}
