package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/protocol"
)

// maxErrorText bounds an error text of the guest, in bytes.
const maxErrorText = 4096

// AgentError is an error the agent answered a call with. Text is the guest's:
// one line, printable, at most 4 KiB, and otherwise not to be trusted.
type AgentError struct {
	Code codes.Code // as in gRPC, e.g. codes.NotFound
	Text string
}

func (e *AgentError) Error() string { return e.Text }

// intercept stands around each call: it bounds how many wait, lets go of a call
// whose context has ended even when the channel takes no bytes, and turns the
// agent's status into an AgentError.
func (c *Client) intercept(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	select {
	case c.pending <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("call %s: %w", req.Method, ctx.Err())
	case <-c.closed:
		return fmt.Errorf("call %s: %w", req.Method, c.cause)
	}
	c.calls.asked.Add(1)
	// The deadline is kept here, where it counts. A guest that is told of it makes a
	// timer, which under emulation costs it more than most calls do.
	req.TimeoutNano = 0
	// Its own response: the one the caller reads must not be written to after
	// the caller has gone.
	answer := &ttrpc.Response{}
	done := make(chan error, 1)
	go func() {
		defer func() { <-c.pending }()
		// Without the caller's cancellation: ttrpc logs a line for an answer nobody
		// waits for.
		done <- invoke(context.WithoutCancel(ctx), req, answer)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return fmt.Errorf("call %s: %w", req.Method, ctx.Err())
	}
	if err != nil {
		// Without a status, as a request that is too large has one, the channel is
		// at its end, though the call may fail a moment before that is known.
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

// printable makes a guest's text safe to show on a terminal and in a log of one
// line per entry.
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

// ttrpc's frames begin with length (4 bytes), stream id (4), type and flags.
const (
	rpcHeaderSize   = 10
	rpcTypeResponse = 0x2
)

// replyGuard stands between ttrpc and the control stream. It ends the stream
// when more replies arrive than calls were made, or what is not a reply: ttrpc
// writes a log line for each, which a hostile guest could go on with for ever.
type replyGuard struct {
	streamConn
	asked atomic.Int64

	header  [rpcHeaderSize]byte
	have    int
	body    uint32
	replies int64

	mu  sync.Mutex
	err error
}

func (g *replyGuard) Read(p []byte) (int, error) {
	n, err := g.streamConn.Read(p)
	if verr := g.check(p[:n]); verr != nil {
		g.mu.Lock()
		g.err = verr
		g.mu.Unlock()
		return 0, verr
	}
	return n, err
}

func (g *replyGuard) violation() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (g *replyGuard) check(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			n := min(uint64(g.body), uint64(len(p)))
			g.body -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(g.header[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have < rpcHeaderSize {
			return nil
		}
		g.have = 0
		g.body = binary.BigEndian.Uint32(g.header[:])
		g.replies++
		switch {
		case g.body > protocol.MaxMessage:
			return fmt.Errorf("agent sent a message of %d bytes", g.body)
		case g.header[8] != rpcTypeResponse:
			return fmt.Errorf("agent sent a message of type %#x", g.header[8])
		case g.replies > g.asked.Load():
			return errors.New("agent answered more calls than were made")
		}
	}
	return nil
}
