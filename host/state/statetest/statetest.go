// Package statetest makes directories of containers for tests of those who use them.
package statetest

import (
	"net"
	"testing"

	"github.com/huskvm/husk/host/state"
)

// Listening returns the directory of a container c1, and listeners on its two sockets. All end
// with the test.
func Listening(t *testing.T) (dir *state.Dir, control, streams net.Listener) {
	t.Helper()
	dir, err := state.Create(t.TempDir(), &state.Container{ID: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dir.Close)
	listen := func(name string) net.Listener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: dir.FDPath(name)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	return dir, listen(state.ControlSocket), listen(state.StreamSocket)
}

// Accept calls serve for each connection, in a goroutine of its own, until the listener ends.
func Accept(l net.Listener, serve func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go serve(conn)
	}
}
