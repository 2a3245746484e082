package caller

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// runc's names for the two kinds of processes, on the socket of --pidfd-socket.
const (
	PidfdContainer = "standard"
	PidfdExec      = "setns"
)

// SendPidfd sends a pidfd of a process to the socket of --pidfd-socket, as runc does: one
// message with one descriptor and runc's name for the kind of process. If path is empty it does
// nothing.
func SendPidfd(path string, pid int, kind string) error {
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

// WritePIDFile writes the file by rename, because its reader may look at any moment.
func WritePIDFile(path string, pid int) error {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(temp, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return fmt.Errorf("write pid file: %w", err)
	}
	return nil
}
