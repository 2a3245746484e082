package client

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client/fake"
)

const (
	build    = "test-build"
	patience = time.Minute
)

func pair(t *testing.T) (host, guest net.Conn) {
	t.Helper()
	host, guest, err := fake.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close(); _ = guest.Close() })
	return host, guest
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// connect returns a client of a guest in which serve handles each stream.
func connect(t *testing.T, serve func(protocol.StreamHeader, net.Conn)) *Client {
	t.Helper()
	h, g := pair(t)
	go func() { _ = fake.Streams(g, build, serve) }()
	c, err := Connect(within(t, patience), Serial(h), build)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// honest serves the agent's service on control streams and echoes on all others.
func honest(svc protocol.AgentService) func(protocol.StreamHeader, net.Conn) {
	return func(h protocol.StreamHeader, s net.Conn) {
		switch {
		case h.ProcessID == "unknown":
			_ = protocol.WriteStreamAck(s, errors.New("process \"unknown\" does not exist"))
			_ = s.Close()
		case h.Kind == protocol.StreamControl:
			_ = fake.Control(context.Background(), s, svc)
		default:
			fake.Echo(s)
		}
	}
}

// service answers Hello. Its other methods fail or never return.
type service struct{ protocol.AgentService }

func (service) Hello(context.Context, *protocol.HelloRequest) (*protocol.HelloResponse, error) {
	return &protocol.HelloResponse{KernelRelease: "6.1"}, nil
}

func (service) Start(context.Context, *protocol.StartRequest) (*protocol.StartResponse, error) {
	return nil, status.Error(codes.NotFound, "no\x1b[2J such\ncontainer"+strings.Repeat("x", 1<<20))
}

func (service) Wait(ctx context.Context, _ *protocol.WaitRequest) (*protocol.WaitResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestConnectCallStream(t *testing.T) {
	c := connect(t, honest(service{}))
	h, err := c.Control().Hello(within(t, patience), &protocol.HelloRequest{})
	if err != nil || h.KernelRelease != "6.1" {
		t.Fatalf("hello: %v, %v", h, err)
	}
	s, err := c.Stream(within(t, patience), protocol.StreamHeader{Kind: protocol.StreamStdin, ContainerID: "c", ProcessID: "init"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(s, "echo"); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(s); err != nil || string(b) != "echo" {
		t.Fatalf("read %q, %v", b, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestMismatchIsRefused(t *testing.T) {
	h, g := pair(t)
	go func() { _ = protocol.Answer(g, "another-build", nil) }()
	_, err := Connect(within(t, patience), Serial(h), build)
	if !errors.Is(err, protocol.ErrMismatch) || !strings.Contains(err.Error(), "another-build") {
		t.Errorf("got %v", err)
	}
	if _, err := h.Write([]byte("x")); err == nil {
		t.Error("the transport is still open")
	}
}

func TestHandshakeFailures(t *testing.T) {
	for name, play := range map[string]func(net.Conn){
		"garbage":  func(g net.Conn) { _, _ = g.Write([]byte("\x00\x01\xff\xff garbage")) },
		"endless":  func(g net.Conn) { _, _ = g.Write([]byte(strings.Repeat("a", 1<<16))) },
		"hang-up":  func(g net.Conn) { _ = g.Close() },
		"stutters": func(g net.Conn) { _, _ = g.Write([]byte("husk/1 ")); _ = g.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			h, g := pair(t)
			go play(g)
			if _, err := Connect(within(t, patience), Serial(h), build); err == nil {
				t.Error("connected")
			} else if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("ran into the deadline: %v", err)
			}
		})
	}
}

func TestConnectEndsWithItsContext(t *testing.T) {
	for name, play := range map[string]func(net.Conn){
		"silent":               func(net.Conn) {},
		"silent after hello":   func(g net.Conn) { _ = protocol.Answer(g, build, func(protocol.Offer) error { return nil }) },
		"no answer to control": func(g net.Conn) { _ = fake.Streams(g, build, func(protocol.StreamHeader, net.Conn) {}) },
	} {
		t.Run(name, func(t *testing.T) {
			h, g := pair(t)
			go play(g)
			_, err := Connect(within(t, 100*time.Millisecond), Serial(h), build)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want deadline exceeded", err)
			}
		})
	}
}

func TestRefusedStream(t *testing.T) {
	c := connect(t, honest(service{}))
	_, err := c.Stream(within(t, patience), protocol.StreamHeader{Kind: protocol.StreamStdout, ContainerID: "c", ProcessID: "unknown"})
	if err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("got %v", err)
	}
	if _, err := c.Stream(within(t, patience), protocol.StreamHeader{Kind: protocol.StreamControl}); err == nil {
		t.Error("a second control stream was opened")
	}
}

func TestAgentErrorIsOnePrintableLine(t *testing.T) {
	c := connect(t, honest(service{}))
	_, err := c.Control().Start(within(t, patience), &protocol.StartRequest{})
	var agentErr *AgentError
	if !errors.As(err, &agentErr) || agentErr.Code != codes.NotFound {
		t.Fatalf("got %#v", err)
	}
	if text := err.Error(); !strings.HasPrefix(text, "no[2J such containerx") || len(text) > maxErrorText {
		t.Errorf("text is %d bytes, begins %.40q", len(text), text)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	c := connect(t, honest(service{}))
	if _, err := c.Control().Wait(within(t, 50*time.Millisecond), &protocol.WaitRequest{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	// The channel still works.
	if _, err := c.Control().Hello(within(t, patience), &protocol.HelloRequest{}); err != nil {
		t.Errorf("hello after that: %v", err)
	}
}

// TestStuckChannelEndsWithContexts: calls return when their contexts end, also if the guest has
// stopped reading its port.
func TestStuckChannelEndsWithContexts(t *testing.T) {
	h, g := pair(t)
	go func() {
		// The guest reads what Connect needs: the greeting and the frames of the control
		// stream.
		if protocol.Answer(g, build, func(protocol.Offer) error { return nil }) != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, g, 12+12+3)
		ack := make([]byte, 12, 13) // data frame, ACK, stream 1, one byte: the stream is accepted
		ack[3] = 2
		binary.BigEndian.PutUint32(ack[4:], 1)
		binary.BigEndian.PutUint32(ack[8:], 1)
		_, _ = g.Write(append(ack, 0))
	}()
	c, err := Connect(within(t, patience), Serial(h), build)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	// The request fills the stream's window and the socket.
	big := &protocol.CreateRequest{Spec: make([]byte, 3<<20)}
	if _, err := c.Control().Create(within(t, 100*time.Millisecond), big); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("create: %v", err)
	}
	if _, err := c.Control().Hello(within(t, 100*time.Millisecond), &protocol.HelloRequest{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hello: %v", err)
	}
	header := protocol.StreamHeader{Kind: protocol.StreamStdin, ContainerID: "c", ProcessID: "init"}
	if _, err := c.Stream(within(t, 100*time.Millisecond), header); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stream: %v", err)
	}
}

// TestTooLargeRequest: a request that is too large fails, and the channel still works.
func TestTooLargeRequest(t *testing.T) {
	c := connect(t, honest(service{}))
	if _, err := c.Control().Create(within(t, patience), &protocol.CreateRequest{Spec: make([]byte, 5<<20)}); err == nil {
		t.Error("5 MiB were sent")
	}
	if _, err := c.Control().Hello(within(t, patience), &protocol.HelloRequest{}); err != nil {
		t.Errorf("hello after that: %v", err)
	}
}

func TestEndOfChannelEndsCalls(t *testing.T) {
	h, g := pair(t)
	go func() { _ = fake.Streams(g, build, honest(service{})) }()
	c, err := Connect(within(t, patience), Serial(h), build)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := c.Control().Wait(context.Background(), &protocol.WaitRequest{})
		failed <- err
	}()
	_ = g.Close()
	for name, ch := range map[string]<-chan struct{}{"Done": c.Done()} {
		select {
		case <-ch:
		case <-time.After(patience):
			t.Fatalf("%s is still open", name)
		}
	}
	select {
	case err := <-failed:
		if !errors.Is(err, ErrClosed) {
			t.Errorf("call failed with %v, want ErrClosed", err)
		}
	case <-time.After(patience):
		t.Fatal("call still waits")
	}
	if !errors.Is(c.Err(), ErrClosed) {
		t.Errorf("Err is %v", c.Err())
	}
	if _, err := c.Stream(within(t, patience), protocol.StreamHeader{Kind: protocol.StreamStdin}); !errors.Is(err, ErrClosed) {
		t.Errorf("stream: %v", err)
	}
}

// rpcFrame returns the header of a ttrpc frame.
func rpcFrame(length, stream uint32, kind byte) []byte {
	b := make([]byte, rpcHeaderSize)
	binary.BigEndian.PutUint32(b, length)
	binary.BigEndian.PutUint32(b[4:], stream)
	b[8] = kind
	return b
}

// TestHostileControlStream: whatever a hostile agent sends on the control stream, the call
// fails and the channel ends; nothing is logged and no memory grows.
func TestHostileControlStream(t *testing.T) {
	for name, answer := range map[string]func(io.Writer){
		"huge message":   func(w io.Writer) { _, _ = w.Write(rpcFrame(1<<31, 1, rpcTypeResponse)) },
		"not a response": func(w io.Writer) { _, _ = w.Write(rpcFrame(0, 1, 3)) },
		"garbage":        func(w io.Writer) { _, _ = io.WriteString(w, strings.Repeat("garbage ", 100)) },
		"flood of replies": func(w io.Writer) {
			for {
				if _, err := w.Write(rpcFrame(0, 7, rpcTypeResponse)); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, func(_ protocol.StreamHeader, s net.Conn) {
				_ = protocol.WriteStreamAck(s, nil)
				_, _ = s.Read(make([]byte, 1))
				answer(s)
			})
			_, err := c.Control().Hello(within(t, patience), &protocol.HelloRequest{})
			if !errors.Is(err, ErrClosed) {
				t.Errorf("call: %v, want ErrClosed", err)
			}
			select {
			case <-c.Done():
			case <-time.After(patience):
				t.Fatal("the channel goes on")
			}
			if !strings.Contains(c.Err().Error(), "agent ") {
				t.Errorf("%v does not say what the agent did", c.Err())
			}
		})
	}
}

func FuzzReplyGuard(f *testing.F) {
	f.Add(rpcFrame(3, 1, rpcTypeResponse), uint8(1))
	f.Add(rpcFrame(0, 1, 1), uint8(9))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		whole, pieces := newReplyGuard(nil), newReplyGuard(nil)
		whole.asked.Store(2)
		pieces.asked.Store(2)
		want := whole.frames.Follow(b)
		var got error
		for rest := b; len(rest) > 0 && got == nil; {
			n := min(len(rest), int(cut)+1)
			got = pieces.frames.Follow(rest[:n])
			rest = rest[n:]
		}
		if (got == nil) != (want == nil) {
			t.Fatalf("whole: %v, in pieces: %v", want, got)
		}
	})
}

// FuzzPrintable: every text of a guest becomes one printable line of bounded length.
func FuzzPrintable(f *testing.F) {
	f.Add("no such\nfile \x1b[2J \u202e")
	f.Fuzz(func(t *testing.T, s string) {
		got := printable(s)
		if got == "" || len(got) > maxErrorText || !utf8.ValidString(got) {
			t.Errorf("%q became %q", s, got)
		}
		for _, c := range got {
			if !unicode.IsPrint(c) {
				t.Errorf("%q lets %U pass", s, c)
			}
		}
	})
}
