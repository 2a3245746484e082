package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client"
)

// socket is one of the supervisor's listening sockets. It is bound before the
// supervisor leaves the host's mount namespace and lives on without its path.
type socket struct {
	*net.UnixListener
	peers crowd // accepted and not closed yet
}

// Accept counts what it returns. ttrpc's Shutdown is no help here: it takes a
// connection for idle while its only request is being answered, and cuts it.
func (s *socket) Accept() (net.Conn, error) {
	c, err := s.AcceptUnix()
	if err != nil {
		return nil, err
	}
	s.peers.enter()
	return &peer{UnixConn: c, leave: sync.OnceFunc(s.peers.leave)}, nil
}

// crowd counts what has to end before this process may: connections of verbs and of exec
// processes, or outputs that are carried for others.
type crowd struct {
	mu    sync.Mutex
	size  int
	empty chan struct{} // closed when size is 0 again; nil until left is called
}

func (c *crowd) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.size++
}

func (c *crowd) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.size--
	if c.size == 0 && c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

// left returns a channel that is closed as soon as none is left. It may be called once.
func (c *crowd) left() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	none := make(chan struct{})
	if c.size == 0 {
		close(none)
	} else {
		c.empty = none
	}
	return none
}

type peer struct {
	*net.UnixConn
	leave func()
}

func (p *peer) Close() error {
	defer p.leave()
	return p.UnixConn.Close()
}

func listen(dir *state.Dir, name string) (*socket, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: dir.FDPath(name)})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", filepath.Join(dir.Path, name), state.SocketError(err))
	}
	// By the time it is closed its path leads into the container's rootfs.
	l.SetUnlinkOnClose(false)
	// The directory lets only its owner in, and so does the socket, whatever the
	// caller's umask.
	if err := os.Chmod(dir.FDPath(name), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", name, err), l.Close())
	}
	return &socket{UnixListener: l}, nil
}

// serve answers verbs and exec processes until the process ends.
func (s *supervisor) serve() error {
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(s.saveTheReason))
	if err != nil {
		return fmt.Errorf("create control service: %w", err)
	}
	control.RegisterSupervisorService(server, s)
	go func() {
		err := server.Serve(context.Background(), s.control)
		s.log.WithError(err).Error("serve control socket")
	}()
	go func() {
		for {
			conn, err := s.streams.AcceptUnix()
			if err != nil {
				s.log.WithError(err).Error("serve stream socket")
				return
			}
			go func() {
				if err := s.proxy(conn); err != nil {
					s.log.WithError(err).Debug("stream of an exec process")
				}
			}()
		}
	}()
	return nil
}

// saveTheReason answers a verb whose call the guest left open with why it did. An
// error in a verb of husk's own is not the container's end.
func (s *supervisor) saveTheReason(ctx context.Context, decode ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, verb ttrpc.Method) (resp any, err error) {
	defer func() {
		if v := recover(); v != nil {
			resp, err = nil, s.panicked(v)
		}
	}()
	resp, err = verb(ctx, decode)
	if errors.Is(err, client.ErrClosed) {
		err = s.machine.WithConsole(s.machine.Explain(ctx, err))
	}
	return resp, err
}

// headerTimeout is how long a connection to the stream socket may take to say
// what it wants.
const headerTimeout = 10 * time.Second

// processStreams are those that an exec process may ask for.
var processStreams = []protocol.StreamKind{protocol.StreamStdin, protocol.StreamStdout, protocol.StreamStderr, protocol.StreamConnect}

// proxy joins one connection of an exec process with a stream of the guest.
func (s *supervisor) proxy(host *net.UnixConn) error {
	defer host.Close()
	if err := host.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return err
	}
	header, err := protocol.ReadStreamHeader(host)
	if err != nil {
		return err
	}
	if header.Kind == protocol.StreamRest && header.ContainerID == s.container.ID {
		return s.rests.take(host)
	}
	if err := host.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if !slices.Contains(processStreams, header.Kind) || header.ContainerID != s.container.ID {
		return errors.New("stream socket: only stdio of this container")
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	guest, err := s.dial(header.ProcessID)(ctx, header.Kind, header.Number)
	// The exec process may call Wait from here on: the agent knows the stream.
	if ackErr := protocol.WriteStreamAck(host, err); err == nil {
		err = ackErr
	}
	if err != nil {
		return err
	}
	defer guest.Close()
	join(host, guest, header.Kind)
	return nil
}

// join copies until the stream has ended in its direction or either side gave
// up. An exec process that closes its end of an output wants no more of it, and
// the guest's process must learn that.
func join(host *net.UnixConn, guest stdio.Stream, kind protocol.StreamKind) {
	switch kind {
	case protocol.StreamStdin:
		_, _ = io.Copy(guest, host)
		_ = guest.CloseWrite()
		return
	case protocol.StreamConnect:
		protocol.Join(host, guest)
		return
	}
	go func() {
		// Nothing is sent this way: it returns when the exec process closes.
		_, _ = io.Copy(io.Discard, host)
		guest.Close()
	}()
	_, _ = io.Copy(host, guest)
	_ = host.CloseWrite()
}
