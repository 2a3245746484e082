package main

import (
	"fmt"
	"log"
	"net"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/agent/protocol"
)

// The pause between attempts to reach a host that refuses grows from the first
// to the last: no event says that it listens now. A clone is refused when it is
// awake before its host listens, which is a matter of a few milliseconds. A lost
// attempt ends by the kernel's own timeout, 2 s.
const (
	firstDialPause = time.Millisecond
	lastDialPause  = 50 * time.Millisecond
)

// vsockCID returns this guest's context id; ok is false without a vsock device.
func vsockCID() (cid uint32, ok bool) {
	cid, err := vsock.ContextID()
	// The device node is there as soon as the module is, the cid only with a device.
	return cid, err == nil && cid != unix.VMADDR_CID_ANY && cid > vsock.Host
}

// listenVsock listens for the host's streams, then keeps telling the host that
// the agent is up.
func listenVsock() (net.Listener, error) {
	// Any cid: the listener outlives the change of cid of a template's clone.
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, protocol.StreamVsockPort, nil)
	if err != nil {
		return nil, fmt.Errorf("listen on the agent channel: %w", err)
	}
	go sayHello()
	return hostOnly{l}, nil
}

// hostOnly is a listener that takes connections of the host alone: a process in
// a container can reach this port too, over the loopback of vsock.
type hostOnly struct{ net.Listener }

func (l hostOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if peer, ok := conn.RemoteAddr().(*vsock.Addr); ok && peer.ContextID == vsock.Host {
			return conn, nil
		}
		_ = conn.Close()
	}
}

// sayHello keeps one connection to the host for the VM's life. It breaks when a
// clone of a template wakes up, whose transport the kernel resets; the new cid
// then says which port to dial.
func sayHello() {
	var last string
	pause := firstDialPause
	for {
		met, err := hello()
		if met {
			pause = firstDialPause
			continue // a clone has woken up
		}
		// One line per reason, not per attempt.
		if text := fmt.Sprint(err); text != last {
			log.Print(text)
			last = text
		}
		time.Sleep(pause)
		pause = min(2*pause, lastDialPause)
	}
}

// hello dials, shakes hands and returns why the connection ended, and whether
// there was one.
func hello() (met bool, err error) {
	cid, ok := vsockCID()
	if !ok {
		return false, fmt.Errorf("dial the host: no vsock device")
	}
	conn, err := vsock.Dial(vsock.Host, cid, nil)
	if err != nil {
		return false, fmt.Errorf("dial the host: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := protocol.Answer(conn, build); err != nil {
		return true, err
	}
	_, err = conn.Read(make([]byte, 1))
	return true, fmt.Errorf("connection to the host ended: %w", err)
}
