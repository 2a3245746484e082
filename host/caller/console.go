package caller

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// CheckTerminal returns an error, in runc's words, for a terminal whose master nobody would
// hold, and for a console socket without a terminal.
func CheckTerminal(terminal, detach, socket bool) error {
	if terminal && detach && !socket {
		return errors.New("cannot allocate tty if husk will detach without setting console socket")
	}
	if socket && (!terminal || !detach) {
		return errors.New("cannot use console socket if husk will not detach or allocate tty")
	}
	return nil
}

// DialConsole connects to the engine's console socket if there is a path. Otherwise it returns
// own, one end of a socket pair of husk's.
func DialConsole(path string, own *os.File) (*os.File, error) {
	if path == "" {
		return own, nil
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		return nil, fmt.Errorf("connect to console socket: %w", err)
	}
	return f, nil
}
