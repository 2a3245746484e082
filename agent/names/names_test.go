package names

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/huskvm/husk/protocol"
)

const patience = time.Minute

// listening returns a resolver in this process's network namespace without redirection, and the
// host's end of its stream.
func listening(t *testing.T) (*Resolver, net.Conn, <-chan error) {
	t.Helper()
	r := &Resolver{pending: make(map[uint32]*question), conns: make(chan struct{}, maxConns)}
	if err := r.listen(); err != nil {
		t.Fatal(err)
	}
	host, guest := net.Pipe()
	t.Cleanup(func() { _ = host.Close() })
	if err := host.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	r.host = guest // the test asks by itself, maybe before Serve has set the stream
	served := make(chan error, 1)
	go func() { served <- r.Serve(guest) }()
	return r, host, served
}

func dial(t *testing.T, network string, to net.Addr) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, to.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func asked(t *testing.T, host io.Reader, text string, tcp bool) uint32 {
	t.Helper()
	q, err := protocol.ReadNameMessage(host)
	if err != nil || string(q.Message) != text || q.TCP != tcp {
		t.Fatalf("the host is asked %+v, %v; want %q", q, err, text)
	}
	return q.ID
}

func answer(t *testing.T, host io.Writer, id uint32, text string) {
	t.Helper()
	if err := (protocol.NameMessage{ID: id, Message: []byte(text)}).Write(host); err != nil {
		t.Fatal(err)
	}
}

// TestAnswersGoToWhoAsked: each answer reaches the process that asked, in whatever order
// answers come.
func TestAnswersGoToWhoAsked(t *testing.T) {
	r, host, _ := listening(t)
	udp, tcp := dial(t, "udp", r.udp.LocalAddr()), dial(t, "tcp", r.tcp.Addr())
	if _, err := io.WriteString(udp, "first"); err != nil {
		t.Fatal(err)
	}
	first := asked(t, host, "first", false)
	if _, err := tcp.Write(append(binary.BigEndian.AppendUint16(nil, 6), "second"...)); err != nil {
		t.Fatal(err)
	}
	second := asked(t, host, "second", true)
	answer(t, host, second+1000, "an answer that nobody waits for")
	answer(t, host, second, "of the second")
	answer(t, host, second, "of the second, again")
	answer(t, host, first, "of the first")
	buf := make([]byte, 100)
	if n, err := udp.Read(buf); err != nil || string(buf[:n]) != "of the first" {
		t.Errorf("by UDP: %q, %v", buf[:n], err)
	}
	n, err := io.ReadFull(tcp, buf[:2+len("of the second")])
	if err != nil || string(buf[2:n]) != "of the second" || int(binary.BigEndian.Uint16(buf)) != n-2 {
		t.Errorf("by TCP: %q, %v", buf[:n], err)
	}
}

// TestEndOfTheStream: when the host's stream ends, the resolver and its connections end.
func TestEndOfTheStream(t *testing.T) {
	r, host, served := listening(t)
	tcp := dial(t, "tcp", r.tcp.Addr())
	if _, err := tcp.Write([]byte{0, 1, 'x'}); err != nil {
		t.Fatal(err)
	}
	asked(t, host, "x", true)
	_ = host.Close()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("still serving")
	}
	if _, err := tcp.Read(make([]byte, 1)); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection: %v", err)
	}
	if c, err := net.DialTimeout("tcp", r.tcp.Addr().String(), patience); err == nil {
		_ = c.Close()
		t.Error("still listening")
	}
}

// TestTooManyQuestions: questions beyond the bound are dropped, and answers to the others still
// arrive.
func TestTooManyQuestions(t *testing.T) {
	r, host, _ := listening(t)
	go func() {
		for range maxPending {
			if _, err := protocol.ReadNameMessage(host); err != nil {
				return
			}
		}
	}()
	for i := range maxPending {
		if !r.ask(false, []byte("x"), func([]byte) {}) {
			t.Fatalf("question %d was not heard", i)
		}
	}
	if r.ask(false, []byte("x"), func([]byte) {}) {
		t.Error("more were heard than may wait")
	}
	heard := make(chan []byte, 1)
	r.take(1)
	go func() { _, _ = protocol.ReadNameMessage(host) }()
	if !r.ask(false, []byte("y"), func(m []byte) { heard <- m }) {
		t.Fatal("a question after an answer was not heard")
	}
	answer(t, host, maxPending+1, "z")
	select {
	case m := <-heard:
		if string(m) != "z" {
			t.Errorf("answer %q", m)
		}
	case <-time.After(patience):
		t.Error("no answer")
	}
}
