package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/mux"
)

// channelWait is how long the device may take to appear after its module was loaded. The host's
// deadline for the boot may be longer; this one makes the agent write the reason to the
// console.
const channelWait = 30 * time.Second

// openChannel finds the port of the agent channel, waits there for the host's greeting, and
// returns a listener for the streams that the host opens.
//
// The host may save a template as soon as the port is open. What the agent does after that,
// every clone has to do again.
func openChannel(events *uevents) (net.Listener, error) {
	path, err := awaitPort(events)
	events.close()
	if err != nil {
		return nil, err
	}
	port, err := openPort(path)
	if err != nil {
		return nil, err
	}
	session, err := meetHost(port)
	if err != nil {
		return nil, errors.Join(err, port.Close())
	}
	return session, nil
}

func awaitPort(events *uevents) (path string, err error) {
	deadline := time.Now().Add(channelWait)
	for {
		path, err := findSerialPort(virtioPortsDir)
		if err != nil || path != "" {
			return path, err
		}
		if err := events.wait(deadline); err != nil {
			return "", fmt.Errorf("find virtio-serial port %s, the agent channel: %w", protocol.ChannelPort, err)
		}
	}
}

// meetHost answers the host's greeting and returns the session that follows, either on the port
// or on the vsock connection that the host makes. Only one session is ever made: when it ends,
// the host is gone and the guest ends too.
func meetHost(port io.ReadWriteCloser) (*mux.Session, error) {
	var g *gate
	err := protocol.Answer(port, build, func(o protocol.Offer) (err error) {
		if o.VsockCID != 0 {
			// The port must listen before the answer is sent, because the host dials when it
			// gets the answer.
			g, err = listenVsock(o)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if g == nil {
		return mux.Guest(port)
	}
	conn, err := g.admit()
	if err != nil {
		return nil, err
	}
	return mux.Guest(conn)
}
