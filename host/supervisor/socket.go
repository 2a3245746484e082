package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/huskvm/husk/host/state"
)

// socket is one of the supervisor's listening sockets. It is bound before the supervisor leaves
// the host's mount namespace, and works on without its path.
type socket struct {
	*net.UnixListener
	peers crowd // accepted connections that are not closed
}

// Accept counts the connections that it returns. ttrpc's Shutdown does not suffice: it takes a
// connection for idle while its only request is being answered, and closes it.
func (s *socket) Accept() (net.Conn, error) {
	c, err := s.AcceptUnix()
	if err != nil {
		return nil, err
	}
	s.peers.enter()
	return &peer{UnixConn: c, leave: sync.OnceFunc(s.peers.leave)}, nil
}

// crowd counts what must end before this process may: connections of verbs and exec processes,
// or outputs that are copied for others.
type crowd struct {
	// mu guards the fields below. It is held only to read or write them.
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

// left returns a channel that is closed when the count is 0. It may be called only once.
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
	// When the socket is closed, its path leads into the container's rootfs.
	l.SetUnlinkOnClose(false)
	// Only the owner may enter the directory, and the socket has the same permissions, whatever
	// the caller's umask is.
	if err := os.Chmod(dir.FDPath(name), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", name, err), l.Close())
	}
	return &socket{UnixListener: l}, nil
}
