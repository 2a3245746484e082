package main

import (
	"fmt"
	"net"
	"time"
)

// channelWait is how long the device may take to appear after its module is
// loaded. The host has its own deadline for the whole boot; this one only makes
// sure that the console says why.
const channelWait = 30 * time.Second

// openChannel finds the one channel device the host gave this guest and returns
// a listener for the streams the host opens.
//
// Once it listens a template may be saved: what is closed or made after that is
// closed or made again in each clone.
func openChannel(events *uevents) (net.Listener, error) {
	port, err := awaitChannel(events)
	events.close()
	switch {
	case err != nil:
		return nil, err
	case port != "":
		return listenSerial(port)
	}
	return listenVsock()
}

// awaitChannel returns the serial port, "" if it is a vsock device.
func awaitChannel(events *uevents) (port string, err error) {
	deadline := time.Now().Add(channelWait)
	for {
		port, err := findSerialPort(virtioPortsDir)
		if err != nil {
			return "", err
		}
		if port != "" {
			return port, nil
		}
		if _, ok := vsockCID(); ok {
			return "", nil
		}
		if err := events.wait(deadline); err != nil {
			return "", fmt.Errorf("find the agent channel, neither a virtio-serial port nor a vsock device: %w", err)
		}
	}
}
