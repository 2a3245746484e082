package supervisor

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/protocol"
)

// dialer opens streams of one process of a container.
func dialer(m *machine.Machine, containerID, processID string) stdio.Dial {
	return func(ctx context.Context, kind protocol.StreamKind, number byte) (stdio.Stream, error) {
		return m.Stream(ctx, protocol.StreamHeader{
			Kind: kind, ContainerID: containerID, ProcessID: processID, Number: number,
		})
	}
}

// streams connects each connection to the stream socket with a stream of the guest. rests and
// the socket count the streams that are open. It has no state of its own and so no lock.
type streams struct {
	id      string // of the container
	machine *machine.Machine
	rests   *rests
	log     *logrus.Logger
}

// serve serves the socket until it fails.
func (t *streams) serve(l *socket) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			t.log.WithError(err).Error("serve stream socket")
			return
		}
		go func() {
			if err := t.proxy(conn); err != nil {
				t.log.WithError(err).Debug("stream of an exec process")
			}
		}()
	}
}

// headerTimeout bounds how long a connection to the stream socket may take to send its header.
const headerTimeout = 10 * time.Second

// processStreams are the kinds of streams that an exec process may ask for.
var processStreams = []protocol.StreamKind{protocol.StreamStdin, protocol.StreamStdout, protocol.StreamStderr, protocol.StreamConnect}

// proxy joins a connection of an exec process with a stream of the guest.
func (t *streams) proxy(host *net.UnixConn) error {
	defer host.Close()
	if err := host.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return err
	}
	header, err := protocol.ReadStreamHeader(host)
	if err != nil {
		return err
	}
	if header.Kind == protocol.StreamRest && header.ContainerID == t.id {
		return t.rests.take(host)
	}
	if err := host.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if !slices.Contains(processStreams, header.Kind) || header.ContainerID != t.id {
		return errors.New("stream socket: only stdio of this container")
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	guest, err := dialer(t.machine, t.id, header.ProcessID)(ctx, header.Kind, header.Number)
	// From here on the exec process may call Wait, because the agent knows the stream.
	if ackErr := protocol.WriteStreamAck(host, err); err == nil {
		err = ackErr
	}
	if err != nil {
		return err
	}
	defer guest.Close()
	join(host, guest, header.Kind)
	return nil
}

// join copies until the stream has ended in its direction or either side has given up. If an
// exec process closes its end of an output, the guest's process must learn that nobody reads.
func join(host *net.UnixConn, guest stdio.Stream, kind protocol.StreamKind) {
	switch kind {
	case protocol.StreamStdin:
		_, _ = io.Copy(guest, host)
		_ = guest.CloseWrite()
		return
	case protocol.StreamConnect:
		protocol.Join(host, guest)
		return
	}
	go func() {
		// Nothing is sent in this direction, so it returns when the exec process closes its
		// end.
		_, _ = io.Copy(io.Discard, host)
		guest.Close()
	}()
	_, _ = io.Copy(host, guest)
	_ = host.CloseWrite()
}
