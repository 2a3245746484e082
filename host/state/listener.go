package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Listeners returns the processes that listen on the directory's sockets: the supervisor if it
// is alive, whatever the saved state says. The kernel knows them, so a supervisor that hangs or
// was stopped is found as well.
func (d *Dir) Listeners() ([]Process, error) {
	var all []Process
	for _, name := range []string{ControlSocket, StreamSocket} {
		p, err := d.listener(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED):
			continue // nobody listens
		case err != nil:
			return all, fmt.Errorf("find who listens on %s: %w", name, err)
		}
		if len(all) == 0 || all[0] != p {
			all = append(all, p)
		}
	}
	return all, nil
}

func (d *Dir) listener(name string) (Process, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: d.FDPath(name)})
	if err != nil {
		return Process{}, SocketError(err)
	}
	// The connection stays open until the start time is read, so that the process cannot be
	// another one.
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return Process{}, err
	}
	var peer *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		peer, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Process{}, err
	}
	if optErr != nil {
		return Process{}, os.NewSyscallError("getsockopt", optErr)
	}
	p, err := ProcessOf(int(peer.Pid))
	if errors.Is(err, fs.ErrNotExist) {
		return Process{}, unix.ECONNREFUSED // it has ended
	}
	return p, err
}

// EndSupervisor ends the process that is saved as the container's, and the processes that
// listen on its sockets. The two differ if the supervisor is not saved yet, or if the
// container's process is a stand-in.
func (d *Dir) EndSupervisor(ctx context.Context, saved Process) error {
	if err := saved.Kill(ctx); err != nil {
		return err
	}
	others, err := d.Listeners()
	if err != nil {
		return err
	}
	for _, p := range others {
		if err := p.Kill(ctx); err != nil {
			return err
		}
	}
	return nil
}
