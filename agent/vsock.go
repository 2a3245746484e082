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
	// cidWait is how long the device may take to have the cid that the host says
	// it has: a clone of a template has its template's until its kernel has
	// handled the reset of the transport, a few milliseconds after it woke up. The
	// host has its own deadline; this one only makes sure that the console says
	// why.
	cidWait = 10 * time.Second
	// cidPause is between two looks: the kernel tells nobody of a new cid.
	cidPause = time.Millisecond
)

// awaitCID waits until the vsock device has that cid. Before, the guest's kernel
// answers under its old one, which the host's kernel throws away.
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

// isHost tells the host's peers with the right to bind a reserved port from the
// host's other processes, and from those of this guest's containers, which
// reach the port over the loopback of vsock.
func isHost(peer net.Addr) bool {
	a, ok := peer.(*vsock.Addr)
	return ok && a.ContextID == unix.VMADDR_CID_HOST && a.Port <= protocol.ReservedVsockPort
}
