// Package names stands in for a resolver that an engine runs in the container's network
// namespace on the host, such as Docker's at 127.0.0.11. The guest cannot reach it, because its
// loopback is not the host's.
//
// The package listens on a free port, and redirects to that port what the container's processes
// send to port 53 of that address. Docker does the same on the host. So a container that is a
// DNS server itself can still use port 53.
package names

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netns"

	"github.com/huskvm/husk/protocol"
)

const (
	// answerTimeout bounds how long an answer may take. Resolvers in the container give up
	// after this time too.
	answerTimeout = 15 * time.Second
	// maxPending bounds the questions that wait for an answer. Further questions are dropped,
	// as a busy network would.
	maxPending = 512
	// maxConns bounds the TCP connections that are open at once.
	maxConns = 64
	// maxUDP is the size of the largest datagram, in bytes.
	maxUDP = 0xffff
)

// Resolver listens in a container until Close is called or Serve returns.
type Resolver struct {
	udp    net.PacketConn
	tcp    net.Listener
	divert *divert

	write   sync.Mutex
	host    io.Writer
	mu      sync.Mutex
	last    uint32
	pending map[uint32]*question
	conns   chan struct{} // one place for each connection
}

type question struct {
	answer func(message []byte)
	expire *time.Timer
}

// Listen starts a resolver in the network namespace at nsPath for the processes of the cgroup
// (version 2) at cgroupDir. The caller calls Close or Serve.
func Listen(nsPath, cgroupDir string) (r *Resolver, err error) {
	if cgroupDir == "" {
		return nil, errors.New("relay names: the container has no cgroup")
	}
	r = &Resolver{pending: make(map[uint32]*question), conns: make(chan struct{}, maxConns)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("relay names: %w", err), r.Close())
		}
	}()
	if err := r.listenIn(nsPath); err != nil {
		return r, err
	}
	_, port, err := net.SplitHostPort(r.tcp.Addr().String())
	if err != nil {
		return r, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return r, err
	}
	r.divert, err = divertTo(cgroupDir, uint16(n))
	return r, err
}

func (r *Resolver) listenIn(nsPath string) error {
	ns, err := netns.GetFromPath(nsPath)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		// The goroutine is not unlocked, so its thread, whose namespace has changed, ends with
		// it.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- r.listen()
	}()
	return <-done
}

// listen finds a port that is free for both UDP and TCP.
func (r *Resolver) listen() error {
	var err error
	var config net.ListenConfig
	ctx := context.Background() // there is no name to look up
	for range 10 {
		if r.tcp, err = config.Listen(ctx, "tcp4", protocol.ResolverAddress+":0"); err != nil {
			return err
		}
		if r.udp, err = config.ListenPacket(ctx, "udp4", r.tcp.Addr().String()); err == nil {
			return nil
		}
		r.tcp.Close()
	}
	return err
}

// Close stops listening and removes the redirection.
func (r *Resolver) Close() error {
	var errs []error
	if r.divert != nil {
		errs = append(errs, r.divert.close())
	}
	if r.tcp != nil {
		errs = append(errs, r.tcp.Close())
	}
	if r.udp != nil {
		errs = append(errs, r.udp.Close())
	}
	return errors.Join(errs...)
}

// Serve passes questions to the host, and the host's answers to the processes that asked. It
// returns when the host closes the stream, and closes the resolver.
func (r *Resolver) Serve(host io.ReadWriter) error {
	r.write.Lock()
	r.host = host
	r.write.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go r.serveUDP()
	go r.serveTCP(ctx)
	err := r.readAnswers(host)
	return errors.Join(err, r.Close())
}

func (r *Resolver) readAnswers(host io.Reader) error {
	for {
		m, err := protocol.ReadNameMessage(host)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if q := r.take(m.ID); q != nil {
			q.answer(m.Message)
		}
	}
}

func (r *Resolver) serveUDP() {
	buf := make([]byte, maxUDP)
	for {
		n, from, err := r.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n == 0 {
			continue // an error for one datagram: nobody received an earlier answer
		}
		r.ask(false, append([]byte(nil), buf[:n]...), func(message []byte) {
			// A lost answer is no error, as on any network.
			_, _ = r.udp.WriteTo(message, from)
		})
	}
}

func (r *Resolver) serveTCP(ctx context.Context) {
	for {
		c, err := r.tcp.Accept()
		if err != nil {
			return
		}
		select {
		case r.conns <- struct{}{}:
		default:
			c.Close()
			continue
		}
		go func() {
			defer func() { <-r.conns }()
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			r.converse(c)
		}()
	}
}

// converse answers the questions of one TCP connection, one after the other, until the
// connection is idle.
func (r *Resolver) converse(c net.Conn) {
	for {
		if c.SetDeadline(time.Now().Add(2*answerTimeout)) != nil {
			return
		}
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		message := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, message); err != nil || len(message) == 0 {
			return
		}
		answered := make(chan []byte, 1)
		if !r.ask(true, message, func(m []byte) { answered <- m }) {
			return
		}
		select {
		case m := <-answered:
			if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)); err != nil {
				return
			}
		case <-time.After(answerTimeout):
			return
		}
	}
}

// ask sends a question to the host. answer is called with the host's answer at most once. ask
// returns false if the question was dropped.
func (r *Resolver) ask(tcp bool, message []byte, answer func([]byte)) bool {
	r.mu.Lock()
	if len(r.pending) >= maxPending {
		r.mu.Unlock()
		return false
	}
	r.last++
	id := r.last
	r.pending[id] = &question{answer: answer, expire: time.AfterFunc(answerTimeout, func() { r.take(id) })}
	r.mu.Unlock()
	r.write.Lock()
	defer r.write.Unlock()
	err := protocol.NameMessage{ID: id, TCP: tcp, Message: message}.Write(r.host)
	return err == nil
}

func (r *Resolver) take(id uint32) *question {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.pending[id]
	if q != nil {
		q.expire.Stop()
		delete(r.pending, id)
	}
	return q
}
