package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// vsockDialer is a socket that is bound to a reserved port of the host.
type vsockDialer struct{ *socket.Conn }

// reservePort binds a port that only a process with CAP_NET_BIND_SERVICE can bind. The agent
// uses the port to recognize peers that may be the host. The host has 1023 of them in all,
// because vsock knows no network namespaces. The error wraps unix.EADDRINUSE if none is free.
func reservePort() (dialer, error) {
	s, err := socket.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0, "vsock", nil)
	if err != nil {
		return nil, fmt.Errorf("dial the agent: %w: load module vhost_vsock or set vsock to off", err)
	}
	for port := uint32(protocol.ReservedVsockPort); port > 0; port-- {
		err = s.Bind(&unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port})
		if err == nil {
			return vsockDialer{s}, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return nil, errors.Join(fmt.Errorf("bind a reserved vsock port: %w: give husk CAP_NET_BIND_SERVICE or set vsock to off", err), s.Close())
}

func (d vsockDialer) connect(ctx context.Context, cid uint32) (sessionConn, error) {
	if _, err := d.Connect(ctx, &unix.SockaddrVM{CID: cid, Port: protocol.VsockPort}); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("dial the agent at cid %d: %w", cid, err)
	}
	return d.Conn, nil
}
