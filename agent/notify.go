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

// notify is the notification socket (sd_notify(3)) of a container. Messages that arrive go to
// the host. A nil *notify stands for a container without one.
type notify struct {
	socket string
	conn   *net.UnixConn

	attaching sync.Once
	ending    sync.Once
	// passed is closed when all messages that arrived before end was called have been sent to
	// the host.
	passed chan struct{}
}

// listenNotify makes the socket in dir, a directory of the guest, from which it is bound into
// the container. It is never removed: it goes with the guest.
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
	// Processes of any user may send, as with runc.
	if err := os.Chmod(n.socket, 0o777); err != nil {
		return nil, errors.Join(fmt.Errorf("make notify socket: %w", err), n.conn.Close())
	}
	return n, nil
}

// mount returns the bind of the socket to the path at which the container looks for it.
func (n *notify) mount(destination string) specs.Mount {
	return specs.Mount{Destination: destination, Type: "bind", Source: n.socket, Options: []string{"bind", "nosuid", "nodev", "noexec"}}
}

// attach sends messages that arrive to the host over s. It owns s unless it returns an error.
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
	// The buffer has one byte more than the largest message, so that longer ones are
	// recognized. They are dropped, as systemd does.
	buf, oob := make([]byte, protocol.MaxNotification+1), make([]byte, unix.CmsgSpace(64*4))
	for {
		size, oobSize, flags, _, err := n.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			log.Printf("receive notification: %v", err)
			return
		}
		// A sender of BARRIER=1 waits until the descriptor that it has sent is closed. By then
		// all messages before it have been sent to the host. Other descriptors cannot be passed
		// on.
		closeRights(oob[:oobSize])
		switch {
		case size == 0:
			return // end was called
		case size > protocol.MaxNotification || flags&unix.MSG_TRUNC != 0:
			log.Printf("a notification of more than %d bytes was dropped", protocol.MaxNotification)
			continue
		}
		if err := protocol.WriteNotification(s, buf[:size]); err != nil {
			return // the host has closed the stream
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

// notifyTimeout bounds how long end waits for the last messages to be sent.
const notifyTimeout = 5 * time.Second

// end returns when all messages that have arrived are sent. The socket is a queue, and end puts
// an empty datagram at its end.
func (n *notify) end() {
	if n == nil {
		return
	}
	n.attaching.Do(func() { close(n.passed) }) // no stream will come any more
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
