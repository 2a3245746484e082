package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

const (
	// cidWait bounds how long the vsock device may take to have the cid that the host has
	// named. A clone has the cid of its template until its kernel has handled the reset of the
	// transport, a few milliseconds after it wakes up. The host's deadline may be longer; this
	// one makes the agent write the reason to the console.
	cidWait = 10 * time.Second
	// cidPause is the time between two looks, because the kernel does not report a new cid.
	cidPause = time.Millisecond
)

// awaitCID waits until the vsock device has this cid. Until then the guest's kernel sends from
// its old cid, and the host's kernel discards that.
func awaitCID(cid uint32, limit time.Duration, current func() (uint32, error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(cidPause)
	defer tick.Stop()
	for {
		now, err := current()
		if err == nil && now == cid {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err != nil {
				return fmt.Errorf("wait for the vsock device to have cid %d: %w", cid, err)
			}
			return fmt.Errorf("wait for the vsock device to have cid %d: it has %d", cid, now)
		}
	}
}

// listenVsock opens the port for the host's one connection.
func listenVsock(o protocol.Offer) (*gate, error) {
	if err := awaitCID(o.VsockCID, cidWait, vsock.ContextID); err != nil {
		return nil, err
	}
	l, err := vsock.ListenContextID(o.VsockCID, protocol.VsockPort, nil)
	if err != nil {
		return nil, fmt.Errorf("listen on the agent channel: %w", err)
	}
	return newGate(l, o.Secret, isHost), nil
}

// isHost says whether a peer is a process of the host with the right to bind a reserved port.
// Other processes of the host, and this guest's containers over the loopback of vsock, can
// reach the port as well.
func isHost(peer net.Addr) bool {
	a, ok := peer.(*vsock.Addr)
	return ok && a.ContextID == unix.VMADDR_CID_HOST && a.Port <= protocol.ReservedVsockPort
}
