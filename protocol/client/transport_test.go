package client

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client/fake"
)

const cid = 4242

// vsockGuest plays a guest with a vsock device. play is called with the guest's end of each
// connection.
type vsockGuest struct {
	play func(number int, conn net.Conn)
	// The errors of the first binds and connects. nil stands for one that works.
	binds, connects []error

	mu              sync.Mutex
	bound, dialled  int
	open            int
	offers          []protocol.Offer
	port, guestPort net.Conn
}

func (v *vsockGuest) transport(t *testing.T, answer bool) Transport {
	t.Helper()
	v.port, v.guestPort = pair(t)
	if answer {
		go func() {
			_ = protocol.Answer(v.guestPort, build, func(o protocol.Offer) error {
				v.mu.Lock()
				defer v.mu.Unlock()
				v.offers = append(v.offers, o)
				return nil
			})
		}()
	}
	return Transport{port: v.port, cid: cid, dial: func() (dialer, error) {
		v.mu.Lock()
		defer v.mu.Unlock()
		n := v.bound
		v.bound++
		if n < len(v.binds) && v.binds[n] != nil {
			return nil, v.binds[n]
		}
		v.open++
		return &vsockSocket{v: v}, nil
	}}
}

type vsockSocket struct {
	v    *vsockGuest
	once sync.Once
}

func (s *vsockSocket) connect(_ context.Context, to uint32) (sessionConn, error) {
	_ = s.Close()
	s.v.mu.Lock()
	n := s.v.dialled
	s.v.dialled++
	s.v.mu.Unlock()
	if to != cid {
		return nil, errors.New("dialled another guest")
	}
	if n < len(s.v.connects) && s.v.connects[n] != nil {
		return nil, s.v.connects[n]
	}
	h, g, err := fake.Pair()
	if err != nil {
		return nil, err
	}
	go s.v.play(n, g)
	return h, nil
}

func (s *vsockSocket) Close() error {
	s.once.Do(func() {
		s.v.mu.Lock()
		defer s.v.mu.Unlock()
		s.v.open--
	})
	return nil
}

// shown reads the secret that the host has to send first.
func shown(conn net.Conn) (s protocol.Secret, err error) {
	_, err = io.ReadFull(conn, s[:])
	return s, err
}

// serveAfterSecret behaves as an honest agent does after it has got the secret.
func serveAfterSecret(conn net.Conn) {
	if protocol.WriteStreamAck(conn, nil) == nil {
		_ = fake.Session(conn, honest(service{}))
	}
}

func TestVsockShowsItsSecretFirst(t *testing.T) {
	secrets := make(chan protocol.Secret, 2)
	v := &vsockGuest{play: func(_ int, conn net.Conn) {
		if s, err := shown(conn); err == nil {
			secrets <- s
			serveAfterSecret(conn)
		}
	}}
	for range 2 {
		c, err := Connect(within(t, patience), v.transport(t, true), build)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := c.Control().Hello(within(t, patience), &protocol.HelloRequest{}); err != nil || h.KernelRelease != "6.1" {
			t.Errorf("hello: %v, %v", h, err)
		}
		_ = c.Close()
	}
	first, second := <-secrets, <-secrets
	if first == second || first == (protocol.Secret{}) {
		t.Error("two VMs have one secret")
	}
	if v.offers[0] != (protocol.Offer{VsockCID: cid, Secret: first}) || v.offers[1] != (protocol.Offer{VsockCID: cid, Secret: second}) {
		t.Error("the secrets are not those of the offers")
	}
}

// TestVsockDialsAgain: the host dials again if other processes have filled the agent's queue or
// taken its place.
func TestVsockDialsAgain(t *testing.T) {
	v := &vsockGuest{
		binds:    []error{nil, unix.EADDRINUSE},
		connects: []error{unix.ECONNRESET, unix.ETIMEDOUT, unix.ENOTCONN},
		play: func(n int, conn net.Conn) {
			switch n {
			case 3:
				_ = conn.Close()
			case 4:
				_, _ = shown(conn)
				_ = conn.Close()
			default:
				if _, err := shown(conn); err == nil {
					serveAfterSecret(conn)
				}
			}
		},
	}
	c, err := Connect(within(t, patience), v.transport(t, true), build)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if v.dialled != 6 || v.open != 0 {
		t.Errorf("dialled %d times, %d sockets left open", v.dialled, v.open)
	}
}

func TestVsockFailures(t *testing.T) {
	reset := make([]error, 1000)
	for i := range reset {
		reset[i] = unix.ECONNRESET
	}
	for name, c := range map[string]struct {
		guest *vsockGuest
		mute  bool
		want  error
		text  string
	}{
		"no answer to the greeting": {guest: &vsockGuest{}, mute: true, want: context.DeadlineExceeded},
		"no answer to the secret": {guest: &vsockGuest{play: func(_ int, conn net.Conn) {
			_, _ = io.Copy(io.Discard, conn)
		}}, want: context.DeadlineExceeded},
		"always sent away":       {guest: &vsockGuest{connects: reset}, want: context.DeadlineExceeded},
		"no right to bind":       {guest: &vsockGuest{binds: []error{unix.EACCES}}, want: unix.EACCES},
		"no right to bind again": {guest: &vsockGuest{binds: []error{nil, unix.EACCES}, connects: reset}, want: unix.EACCES},
		"no route":               {guest: &vsockGuest{connects: []error{unix.ENODEV}}, want: unix.ENODEV},
		"refusal": {guest: &vsockGuest{play: func(_ int, conn net.Conn) {
			_, _ = conn.Write([]byte("\x03no\x1b"))
		}}, text: `"no\x1b"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Connect(within(t, 200*time.Millisecond), c.guest.transport(t, !c.mute), build)
			if err == nil || (c.want != nil && !errors.Is(err, c.want)) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v %s", err, c.want, c.text)
			}
			if c.guest.open != 0 {
				t.Errorf("%d sockets left open", c.guest.open)
			}
			if _, err := c.guest.port.Write([]byte("x")); err == nil {
				t.Error("the port is left open")
			}
		})
	}
}

// TestVsockWithoutAReservedPort: other processes may use all of the host's about a thousand
// reserved ports. Then the streams go over the serial port.
func TestVsockWithoutAReservedPort(t *testing.T) {
	v := &vsockGuest{binds: []error{unix.EADDRINUSE}}
	transport := v.transport(t, false)
	go func() { _ = fake.Streams(v.guestPort, build, honest(service{})) }()
	c, err := Connect(within(t, patience), transport, build)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Control().Hello(within(t, patience), &protocol.HelloRequest{}); err != nil {
		t.Error(err)
	}
	if v.dialled != 0 {
		t.Error("it has dialled")
	}
}

// TestVsockEndsWithItsPort: when QEMU ends, the client ends, also if the vsock connection stays
// open.
func TestVsockEndsWithItsPort(t *testing.T) {
	v := &vsockGuest{play: func(_ int, conn net.Conn) {
		if _, err := shown(conn); err == nil {
			serveAfterSecret(conn)
		}
	}}
	c, err := Connect(within(t, patience), v.transport(t, true), build)
	if err != nil {
		t.Fatal(err)
	}
	_ = v.guestPort.Close()
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Fatal("the client goes on")
	}
}
