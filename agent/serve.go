package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/libcontainer"
	"github.com/huskvm/husk/protocol"
)

// headerTimeout bounds how long a new stream may take to send its header.
const headerTimeout = 30 * time.Second

// machine is what the agent changes of the guest around it. In tests on a host each part is
// harmless or missing.
type machine struct {
	// cgroupParent is the cgroup in which containers get theirs. It is empty if there is no
	// cgroup2.
	cgroupParent string
	// containersMemory bounds the memory of all containers together, in bytes. 0: unknown, so
	// no limit is set.
	containersMemory int64
	// children is nil if the agent is not PID 1.
	children   *reaper
	setClock   func(unixNanos int64) error
	addEntropy func(entropy []byte) error
}

// agent serves the agent's service and holds the state of one guest.
type agent struct {
	machine machine
	rpc     *ttrpc.Server
	control *controlListener
	self    *protocol.HelloResponse // the description of this guest

	mu         sync.Mutex
	containers map[string]*container
	share      *share
	prepared   *libcontainer.Prepared // for the first container; nil if there is none
}

func newAgent(m machine) (*agent, error) {
	rpc, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(answerInUTF8))
	if err != nil {
		return nil, fmt.Errorf("make ttrpc server: %w", err)
	}
	self, err := describe()
	if err != nil {
		return nil, err
	}
	a := &agent{
		machine: m, rpc: rpc, self: self, containers: make(map[string]*container),
		control: &controlListener{conns: make(chan net.Conn), done: make(chan struct{})},
	}
	protocol.RegisterAgentService(rpc, a)
	return a, nil
}

// stream is one of the host's streams, over whichever kind of channel.
type stream = protocol.HalfCloseConn

// serve accepts the host's streams from l until l fails, and returns that error.
func (a *agent) serve(l net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- a.rpc.Serve(context.Background(), a.control) }()
	defer func() { <-served }() //nolint:errcheck // it ends when Close is called, and returns only that
	defer func() { _ = a.rpc.Close() }()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		s, ok := conn.(stream)
		if !ok {
			_ = conn.Close()
			return fmt.Errorf("accept stream: %T has no half-close", conn)
		}
		go func() {
			if err := a.dispatch(s); err != nil {
				_ = s.Close()
				log.Print(err)
			}
		}()
	}
}

// answerInUTF8 replaces invalid UTF-8 in an error's text, such as the bytes of a file name.
// protobuf cannot encode it, and ttrpc would drop the whole connection.
func answerInUTF8(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	resp, err := method(ctx, unmarshal)
	if err != nil && !utf8.ValidString(err.Error()) {
		return nil, status.Error(status.Code(err), strings.ToValidUTF8(err.Error(), "?"))
	}
	return resp, err
}

// dispatch reads the header of a stream, and passes the stream to the code that it is for.
func (a *agent) dispatch(s stream) error {
	if err := s.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return fmt.Errorf("read stream header: %w", err)
	}
	h, err := protocol.ReadStreamHeader(s)
	if err != nil {
		return err
	}
	if err := s.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("read stream header: %w", err)
	}
	if h.Kind == protocol.StreamControl {
		if err := protocol.WriteStreamAck(s, nil); err != nil {
			return err
		}
		return a.control.give(s)
	}
	if err := a.attach(h, s); err != nil {
		// The header is wrong, and the host gets the reason.
		refusal := errors.New(status.Convert(err).Message())
		defer func() { _ = s.Close() }()
		return protocol.WriteStreamAck(s, refusal)
	}
	return nil
}

func (a *agent) attach(h protocol.StreamHeader, s stream) error {
	if h.Kind == protocol.StreamNames || h.Kind == protocol.StreamNotify {
		c, err := a.container(h.ContainerID)
		if err != nil {
			return err
		}
		if h.Kind == protocol.StreamNotify {
			return c.notify.attach(s)
		}
		return c.relayNames(s)
	}
	p, err := a.process(h.ContainerID, h.ProcessID)
	if err != nil {
		return err
	}
	if h.Kind == protocol.StreamConnect {
		return p.connect(h.Number, s)
	}
	return p.stdio.attach(streamID{h.Kind, h.Number}, s)
}

// controlListener is a listener that gives ttrpc those streams that are control streams.
type controlListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *controlListener) give(conn net.Conn) error {
	select {
	case l.conns <- conn:
		return nil
	case <-l.done:
		return net.ErrClosed
	}
}

func (l *controlListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *controlListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr returns an empty address. Control streams have none, and nobody asks.
func (l *controlListener) Addr() net.Addr { return &net.UnixAddr{} }
