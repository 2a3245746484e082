package main

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// What runc calls the two kinds of processes on the socket of --pidfd-socket.
const (
	pidfdContainer = "standard"
	pidfdExec      = "setns"
)

// sendPidfd sends a pidfd of a process to the socket of --pidfd-socket, as runc
// does: one message with one descriptor and runc's word for the kind of process.
// Without a path it does nothing.
func sendPidfd(path string, pid int, kind string) error {
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return fmt.Errorf("send pidfd: %w", err)
	}
	defer conn.Close()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("send pidfd: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, _, err := conn.WriteMsgUnix([]byte(kind), unix.UnixRights(fd), nil); err != nil {
		return fmt.Errorf("send pidfd: %w", err)
	}
	return nil
}
