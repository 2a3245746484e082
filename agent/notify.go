package main

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// notify is a container's socket of sd_notify(3): what arrives goes to the host. It
// may be nil.
type notify struct {
	socket string
	conn   *net.UnixConn

	attaching sync.Once
	ending    sync.Once
	// passed is closed when all that has arrived before end has been passed on.
	passed chan struct{}
}

// listenNotify makes the socket in a directory of the guest's own, for the container
// to be mounted. It goes with the guest.
func listenNotify(dir, id string) (*notify, error) {
	n := &notify{socket: path.Join(dir, id), passed: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make notify socket: %w", err)
	}
	var err error
	n.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: n.socket})
	if err != nil {
		return nil, fmt.Errorf("make notify socket: %w", err)
	}
	// For whatever user the process is of, as with runc.
	if err := os.Chmod(n.socket, 0o777); err != nil {
		return nil, errors.Join(fmt.Errorf("make notify socket: %w", err), n.conn.Close())
	}
	return n, nil
}

// mount puts the socket where the container looks for it.
func (n *notify) mount(destination string) specs.Mount {
	return specs.Mount{Destination: destination, Type: "bind", Source: n.socket, Options: []string{"bind", "nosuid", "nodev", "noexec"}}
}

// attach passes on what arrives. It owns s unless it returns an error.
func (n *notify) attach(s stream) error {
	err := errors.New("the container has no notify socket, or it is attached already")
	if n == nil {
		return err
	}
	n.attaching.Do(func() {
		if err = protocol.WriteStreamAck(s, nil); err == nil {
			go n.passOn(s)
		}
	})
	return err
}

func (n *notify) passOn(s stream) {
	defer close(n.passed)
	defer func() { _ = s.Close() }()
	// One byte more tells what is too long, which systemd drops, too.
	buf, oob := make([]byte, protocol.MaxNotification+1), make([]byte, unix.CmsgSpace(64*4))
	for {
		size, oobSize, flags, _, err := n.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			log.Printf("receive notification: %v", err)
			return
		}
		// Who sends a descriptor along with BARRIER=1 waits for its end: all before
		// it is on its way. Others cannot be passed on.
		closeRights(oob[:oobSize])
		switch {
		case size == 0:
			return // of end
		case size > protocol.MaxNotification || flags&unix.MSG_TRUNC != 0:
			log.Printf("a notification of more than %d bytes was dropped", protocol.MaxNotification)
			continue
		}
		if err := protocol.WriteNotification(s, buf[:size]); err != nil {
			return // the host wants no more
		}
	}
}

func closeRights(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// notifyTimeout is how long the last notifications may take.
const notifyTimeout = 5 * time.Second

// end returns when what has arrived is passed on: the socket is a queue, and an empty
// datagram its end.
func (n *notify) end() {
	if n == nil {
		return
	}
	n.attaching.Do(func() { close(n.passed) }) // nobody will
	n.ending.Do(func() {
		_ = n.conn.SetWriteDeadline(time.Now().Add(notifyTimeout))
		if _, err := n.conn.WriteToUnix(nil, &net.UnixAddr{Net: "unixgram", Name: n.socket}); err != nil {
			log.Printf("end notifications: %v", err)
		}
	})
	select {
	case <-n.passed:
	case <-time.After(notifyTimeout):
	}
}
