package control

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/state/statetest"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/protocol"
)

// supervisor answers Start and Kill.
type supervisor struct {
	SupervisorService // nil: a call that a test does not expect panics
}

func (supervisor) Start(context.Context, *StartRequest) (*StartResponse, error) {
	return &StartResponse{Phases: FromPhases([]timings.Phase{{Process: "supervisor", Name: "network", Began: time.Second, Took: time.Millisecond}})}, nil
}

func (supervisor) Kill(context.Context, *KillRequest) (*KillResponse, error) {
	return nil, status.Error(codes.Internal, "no such process")
}

// listening is a container's directory with both sockets. streams gets what connects to the
// second.
func listening(t *testing.T, streams func(net.Conn)) *state.Dir {
	t.Helper()
	dir, control, stream := statetest.Listening(t)
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	RegisterSupervisorService(server, supervisor{})
	go func() { _ = server.Serve(context.Background(), control) }()
	t.Cleanup(func() { _ = server.Close() })
	go statetest.Accept(stream, streams)
	return dir
}

func connect(t *testing.T, dir *state.Dir) *Client {
	t.Helper()
	c, err := Connect(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// An error is in the supervisor's words, and phases are as they were.
func TestCalls(t *testing.T) {
	c := connect(t, listening(t, nil))
	resp, err := c.Start(t.Context(), &StartRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := Phases(resp.Phases), []timings.Phase{{Process: "supervisor", Name: "network", Began: time.Second, Took: time.Millisecond}}; !slices.Equal(got, want) {
		t.Errorf("phases %v, want %v", got, want)
	}
	if _, err := c.Kill(t.Context(), &KillRequest{}); err == nil || Error(err).Error() != "no such process" {
		t.Errorf("kill: %v", Error(err))
	}
	if own := errors.New("own"); Error(own) != own || Error(nil) != nil { //nolint:errorlint // the very same
		t.Error("an error of the caller's own has become another")
	}
}

func TestStream(t *testing.T) {
	header := protocol.StreamHeader{Kind: protocol.StreamStdin, ContainerID: "c1", ProcessID: "exec-1"}
	dir := listening(t, func(conn net.Conn) {
		defer conn.Close()
		got, err := protocol.ReadStreamHeader(conn)
		if err == nil && got != header {
			err = errors.New("another stream was asked for")
		}
		if protocol.WriteStreamAck(conn, err) != nil {
			return
		}
		_, _ = io.Copy(conn, conn)
	})
	c := connect(t, dir)
	s, err := c.Stream(header)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.WriteString(s, "text"); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(s); err != nil || string(b) != "text" {
		t.Errorf("%q, %v", b, err)
	}
	header2 := header
	header2.ProcessID = "exec-2"
	if s, err := c.Stream(header2); err == nil || s != nil || !strings.Contains(err.Error(), "another stream was asked for") {
		t.Errorf("a stream that is refused: %v, %v", s, err)
	}
}

// A supervisor that has gone.
func TestConnectToNobody(t *testing.T) {
	dir, err := state.Create(t.TempDir(), &state.Container{ID: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if c, err := Connect(dir); err == nil || c != nil {
		t.Errorf("%v, %v", c, err)
	}
}
