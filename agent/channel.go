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

// channelWait is how long the device may take to appear after its module is
// loaded. The host has its own deadline for the whole boot; this one only makes
// sure that the console says why.
const channelWait = 30 * time.Second

// openChannel finds the port that the host gave this guest, waits on it for the
// host's greeting and returns a listener for the streams the host opens.
//
// Once the port is open a template may be saved: what is closed or made after that
// is closed or made again in each clone.
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

// meetHost answers the host's greeting and returns the one session that follows,
// on the port or on the connection that the host makes. When the session breaks,
// the host is gone for good, and the guest with it.
func meetHost(port io.ReadWriteCloser) (*mux.Session, error) {
	var g *gate
	err := protocol.Answer(port, build, func(o protocol.Offer) (err error) {
		if o.VsockCID != 0 {
			// Before the answer: the host dials when it has it.
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
