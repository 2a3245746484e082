// Package standin is the process whose pid is the container's if the container has a user
// namespace. The supervisor cannot be in that namespace, because it needs the host's rights. So
// the stand-in, which does nothing, is in it, with the container's other namespaces, root and
// cgroup, and the supervisor is a process of its pid namespace. If either ends, the other does.
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

// Names of passed descriptors: both processes get the connection between them, and the
// supervisor gets the stand-in's mount namespace.
const (
	FDPeer   = "stand-in"
	FDMounts = "stand-in mounts"
)

// exitLost is the exit code if the supervisor has gone without a message: for a caller that
// waits, the container was killed.
const exitLost = 128 + int(unix.SIGKILL)

// Main is the main function of husk in the role of stand-in. It returns the container's exit
// code.
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
	// If the supervisor cannot be told any more, it has ended.
	stdio.Forward(func(sig unix.Signal) { _, _ = peer.Write([]byte{byte(sig)}) }, nil)
	code := make([]byte, 1)
	if _, err := io.ReadFull(peer, code); err != nil {
		return exitLost
	}
	// The supervisor is still ending what it has started. If this process ended first, the
	// kernel would kill the supervisor, so it waits for the supervisor's end.
	_, _ = io.Copy(io.Discard, peer)
	return int(code[0])
}

// reap reaps the supervisor and the processes that it leaves, if this is the first process of a
// pid namespace.
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

// Peer is the stand-in, as the supervisor sees it.
type Peer struct {
	conn   net.Conn
	mounts *os.File
}

// Connect takes the passed descriptors. It returns nil if there is no stand-in.
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

// Serve calls send for each signal that the stand-in gets, and gone when the stand-in has
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

// End makes the stand-in exit with this code when this process has ended.
func (p *Peer) End(code int) { _, _ = p.conn.Write([]byte{byte(code)}) }
