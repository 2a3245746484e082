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
func openChannel(events *uevents) (net.Listener, error) {
	defer events.close()
	deadline := time.Now().Add(channelWait)
	for {
		port, err := findSerialPort(virtioPortsDir)
		if err != nil {
			return nil, err
		}
		if port != "" {
			return listenSerial(port)
		}
		if cid, ok := vsockCID(); ok {
			return listenVsock(cid)
		}
		if err := events.wait(deadline); err != nil {
			return nil, fmt.Errorf("find the agent channel, neither a virtio-serial port nor a vsock device: %w", err)
		}
	}
}
