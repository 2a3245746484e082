package supervisor

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

// notify passes what the container's process says to a service manager of the host's
// (sd_notify(3)).
type notify struct {
	guestPath string        // empty: nobody listens
	conn      *net.UnixConn // to who listens
	done      chan struct{} // closed when the guest has said all; nil: nothing is passed on
}

// openNotify connects to the socket while there is a path to trust. A socket that is
// not there is nothing to fail for: the process itself finds out, as with runc.
func (s *supervisor) openNotify() {
	want := s.boot.Plan.Notify
	if want == nil {
		return
	}
	conn, err := dialNotify(want)
	if err != nil {
		s.warnings = append(s.warnings, fmt.Sprintf("NOTIFY_SOCKET=%s of the container leads nowhere: %v", want.GuestPath, err))
		return
	}
	s.notify = notify{guestPath: want.GuestPath, conn: conn}
}

func dialNotify(want *specconv.Notify) (*net.UnixConn, error) {
	// The container can write to the bind: a symbolic link there is not to be followed
	// to another socket of the host's.
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

// relayNotify is called when the container is created.
func (s *supervisor) relayNotify(ctx context.Context) error {
	if s.notify.conn == nil {
		return nil
	}
	stream, err := s.agent.Stream(ctx, protocol.StreamHeader{Kind: protocol.StreamNotify, ContainerID: s.container.ID})
	if err != nil {
		return fmt.Errorf("relay notifications: %w", err)
	}
	s.notify.done = make(chan struct{})
	go func() {
		defer close(s.notify.done)
		defer stream.Close()
		if err := passNotifications(s.notify.conn, stream); err != nil && !errors.Is(err, client.ErrClosed) {
			s.log.WithError(err).Warn("relay notifications")
		}
	}()
	return nil
}

// notifyTimeout is how long one notification may wait for its receiver, or the last
// ones for being read.
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

// flush waits until the last notifications of a container that has ended are sent.
func (n *notify) flush() {
	if n.done == nil {
		return
	}
	select {
	case <-n.done:
	case <-time.After(notifyTimeout):
	}
}

// permittedNames are what a process may say of itself. Others name things of the host:
// its processes (MAINPID), which the service manager would end in the container's
// stead, and descriptors, which are not passed on.
var permittedNames = map[string]bool{
	"READY": true, "RELOADING": true, "STOPPING": true, "MONOTONIC_USEC": true, "STATUS": true, "ERRNO": true,
	"BUSERROR": true, "EXIT_STATUS": true, "WATCHDOG": true, "WATCHDOG_USEC": true, "EXTEND_TIMEOUT_USEC": true,
}

// permitted is the part of a notification that may pass.
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
