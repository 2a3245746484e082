// Package standin is the pid of a container with a user namespace. The supervisor
// can't be in one: it works with the host's rights. So a process that does nothing
// is, with the container's other namespaces, its root and its cgroup, and the
// supervisor is a process of its pid namespace. Either ends with the other.
package standin

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/privileges"
	"github.com/huskvm/husk/host/supervisor/stdio"
)

// Names of the descriptors that are passed: to both the connection between them,
// to the supervisor the stand-in's mount namespace.
const (
	FDPeer   = "stand-in"
	FDMounts = "stand-in mounts"
)

// exitLost is the exit code when the supervisor has gone without a word: to whoever
// waits, the container was killed.
const exitLost = 128 + int(unix.SIGKILL)

// Main is a re-executed husk in the role of stand-in. It returns the container's
// exit code.
func Main() int {
	parent, err := launch.Receive(&struct{}{})
	if err != nil || parent.File(FDPeer) == nil {
		return exitLost
	}
	peer, err := net.FileConn(parent.File(FDPeer))
	_ = parent.File(FDPeer).Close()
	if err != nil {
		return exitLost
	}
	if privileges.Drop(privileges.Kept{}) != nil {
		return exitLost
	}
	go reap()
	// A supervisor that can't be told any more has ended.
	stdio.Forward(func(sig unix.Signal) { _, _ = peer.Write([]byte{byte(sig)}) }, nil)
	code := make([]byte, 1)
	if _, err := io.ReadFull(peer, code); err != nil {
		return exitLost
	}
	// Its end, or this one would be its: it is still ending what it has started.
	_, _ = io.Copy(io.Discard, peer)
	return int(code[0])
}

// reap reaps the supervisor and whatever it leaves, where this is the first process
// of a pid namespace.
func reap() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	for range children {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}

// Peer is the supervisor's side.
type Peer struct {
	conn   net.Conn
	mounts *os.File
}

// Connect takes over what the supervisor was passed; nil: there is no stand-in.
func Connect(parent *launch.Parent) (*Peer, error) {
	f := parent.File(FDPeer)
	if f == nil {
		return nil, nil
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("connect to stand-in: %w", err)
	}
	return &Peer{conn: conn, mounts: parent.File(FDMounts)}, nil
}

// Serve calls send for each signal that reaches the stand-in, and gone when that has
// ended.
func (p *Peer) Serve(send func(unix.Signal), gone func()) {
	sig := make([]byte, 1)
	for {
		if _, err := io.ReadFull(p.conn, sig); err != nil {
			gone()
			return
		}
		send(unix.Signal(sig[0]))
	}
}

// End has the stand-in end with an exit code once this process has ended.
func (p *Peer) End(code int) { _, _ = p.conn.Write([]byte{byte(code)}) }
