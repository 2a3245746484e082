package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client"
)

// Notify passes messages of a container's process to a service manager of the host
// (sd_notify(3)). A nil Notify passes nothing. Its methods are called one after the other, so
// it has no lock.
type Notify struct {
	guestPath string
	conn      *net.UnixConn // connection to the service manager
	done      chan struct{} // closed when the guest has sent everything; nil: nothing is passed on
}

// OpenNotify connects to the socket, while its path can be trusted.
func OpenNotify(want *specconv.Notify) (*Notify, error) {
	conn, err := dialNotify(want)
	if err != nil {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%s of the container leads nowhere: %w", want.GuestPath, err)
	}
	return &Notify{guestPath: want.GuestPath, conn: conn}, nil
}

// GuestPath returns the path of the socket for the container's process; empty: there is none.
func (n *Notify) GuestPath() string {
	if n == nil {
		return ""
	}
	return n.guestPath
}

func dialNotify(want *specconv.Notify) (*net.UnixConn, error) {
	// The container can write to the bind: a symbolic link that it makes there must not lead to
	// another socket of the host.
	fd, err := openBelow(want.HostPath, want.Name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errors.New("it is no socket")
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: "/proc/self/fd/" + strconv.Itoa(fd)})
	if err != nil {
		return nil, fmt.Errorf("connect: %w", errors.Unwrap(err))
	}
	return conn, nil
}

func openBelow(hostPath, name string) (int, error) {
	fd, err := unix.Open(hostPath, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: hostPath, Err: err}
	}
	if name == "" {
		return fd, nil
	}
	defer unix.Close(fd)
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	socket, err := unix.Openat2(fd, name, how)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: filepath.Join(hostPath, name), Err: err}
	}
	return socket, nil
}

// Relay starts to pass on messages of the container's process. Call it after the agent has made
// the container.
func (n *Notify) Relay(ctx context.Context, m *Machine, containerID string) error {
	if n == nil {
		return nil
	}
	stream, err := m.Stream(ctx, protocol.StreamHeader{Kind: protocol.StreamNotify, ContainerID: containerID})
	if err != nil {
		return fmt.Errorf("relay notifications: %w", err)
	}
	n.done = make(chan struct{})
	go func() {
		defer close(n.done)
		defer stream.Close()
		if err := passNotifications(n.conn, stream); err != nil && !errors.Is(err, client.ErrClosed) {
			m.log.WithError(err).Warn("relay notifications")
		}
	}()
	return nil
}

// notifyTimeout bounds how long one message may wait for its receiver, and how long Flush waits
// for the last messages.
const notifyTimeout = 5 * time.Second

func passNotifications(to net.Conn, from io.Reader) error {
	for {
		text, err := protocol.ReadNotification(from)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if text = permitted(text); len(text) == 0 {
			continue
		}
		if err := to.SetWriteDeadline(time.Now().Add(notifyTimeout)); err != nil {
			return err
		}
		if _, err := to.Write(text); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
}

// Flush waits until the last messages of a container that has ended are sent.
func (n *Notify) Flush() {
	if n == nil || n.done == nil {
		return
	}
	select {
	case <-n.done:
	case <-time.After(notifyTimeout):
	}
}

// permittedNames are variables that a process may send about itself. Others name things of the
// host: its processes (MAINPID), which the service manager would kill in place of the
// container, and descriptors, which are not passed on.
var permittedNames = map[string]bool{
	"READY": true, "RELOADING": true, "STOPPING": true, "MONOTONIC_USEC": true, "STATUS": true, "ERRNO": true,
	"BUSERROR": true, "EXIT_STATUS": true, "WATCHDOG": true, "WATCHDOG_USEC": true, "EXTEND_TIMEOUT_USEC": true,
}

// permitted returns the lines of a message that may be passed on.
func permitted(text []byte) []byte {
	var lines [][]byte
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		name, _, ok := bytes.Cut(line, []byte("="))
		if ok && permittedNames[string(name)] && !bytes.ContainsRune(line, 0) {
			lines = append(lines, line)
		}
	}
	return bytes.Join(lines, []byte("\n"))
}
