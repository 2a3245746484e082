package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/protocol"
)

// AnswerTimeout bounds how long a supervisor may take to answer a call that does not wait for
// anything. The supervisor gives the guest 30 seconds.
const AnswerTimeout = 40 * time.Second

// Client is a connection to the supervisor of one container.
type Client struct {
	SupervisorService
	dir  *state.Dir
	conn *ttrpc.Client
	// relay passes on what the supervisor has logged meanwhile; nil: nothing.
	relay func()
}

// Connect connects to the supervisor of the container with this directory. The directory must
// stay open as long as the client, because Stream uses it.
func Connect(dir *state.Dir, opts ...ttrpc.ClientOpts) (*Client, error) {
	conn, err := dial(dir, state.ControlSocket)
	if err != nil {
		return nil, err
	}
	c := ttrpc.NewClient(conn, opts...)
	return &Client{SupervisorService: NewSupervisorClient(c), dir: dir, conn: c}, nil
}

// Stream opens a stream of an exec'd process, and returns when the agent has attached it.
func (c *Client) Stream(header protocol.StreamHeader) (*net.UnixConn, error) {
	conn, err := dial(c.dir, state.StreamSocket)
	if err != nil {
		return nil, err
	}
	if err = conn.SetDeadline(time.Now().Add(AnswerTimeout)); err == nil {
		err = header.Write(conn)
	}
	if err == nil {
		err = protocol.ReadStreamAck(conn)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Rest makes the supervisor write the rest of a stream to a file, until the stream or the
// container ends. The caller must not use either any more.
func (c *Client) Rest(header protocol.StreamHeader, stream *net.UnixConn, to *os.File) error {
	from, err := stream.File()
	if err != nil {
		return fmt.Errorf("hand over a stream: %w", err)
	}
	defer from.Close()
	conn, err := dial(c.dir, state.StreamSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(AnswerTimeout)); err != nil {
		return err
	}
	header.Kind = protocol.StreamRest
	if err := header.Write(conn); err != nil {
		return err
	}
	if _, _, err := conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(from.Fd()), int(to.Fd())), nil); err != nil {
		return fmt.Errorf("hand over a stream: %w", err)
	}
	return protocol.ReadStreamAck(conn)
}

// Close closes the connection. Streams stay open.
func (c *Client) Close() error {
	if c.relay != nil {
		c.relay()
	}
	return c.conn.Close()
}

func dial(dir *state.Dir, name string) (*net.UnixConn, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: dir.FDPath(name)})
	if err != nil {
		return nil, fmt.Errorf("connect to the supervisor at %s: %w", filepath.Join(dir.Path, name), state.SocketError(err))
	}
	return conn, nil
}

// Error returns the supervisor's error as it was before ttrpc.
func Error(err error) error {
	if err == nil {
		return nil
	}
	// An error that the caller has wrapped is not an answer of the supervisor.
	if st, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return errors.New(st.GRPCStatus().Message())
	}
	return err
}
