package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/huskvm/husk/protocol"
)

func TestUsesEngineResolver(t *testing.T) {
	for text, want := range map[string]bool{
		"search x\nnameserver 127.0.0.11\noptions ndots:0\n": true,
		"nameserver\t127.0.0.11":                             true,
		"nameserver 127.0.0.1\n":                             false,
		"# nameserver 127.0.0.11\n":                          false,
		"nameserver\n":                                       false,
		"nameserver 10.0.0.1\nnameserver 127.0.0.11\n":       true,
	} {
		if got := UsesEngineResolver(text); got != want {
			t.Errorf("UsesEngineResolver(%q) = %v", text, got)
		}
	}
}

// resolver starts a server that answers each message with "re:" and the message.
func resolver(t *testing.T) string {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	go func() {
		buf := make([]byte, 1000)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(append([]byte("re:"), buf[:n]...), from)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err == nil {
				m := make([]byte, binary.BigEndian.Uint16(size[:]))
				_, _ = io.ReadFull(c, m)
				m = append([]byte("re:"), m...)
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
			}
			c.Close()
		}
	}()
	return tcp.Addr().String()
}

func TestRelayNames(t *testing.T) {
	host, guest := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- relayNames(context.Background(), host, resolver(t)) }()
	for id, tcp := range []bool{false, true} {
		q := protocol.NameMessage{ID: uint32(id), TCP: tcp, Message: []byte("question")}
		if err := q.Write(guest); err != nil {
			t.Fatal(err)
		}
		a, err := protocol.ReadNameMessage(guest)
		if err != nil || a.ID != q.ID || !bytes.Equal(a.Message, []byte("re:question")) {
			t.Errorf("tcp %v: answer %+v, %v", tcp, a, err)
		}
	}
	guest.Close()
	if err := <-ended; err != nil {
		t.Errorf("the guest closed: %v", err)
	}
}

// FuzzUsesEngineResolver parses arbitrary text as a resolv.conf.
func FuzzUsesEngineResolver(f *testing.F) {
	f.Add("search a b\nnameserver 127.0.0.11\n")
	f.Fuzz(func(t *testing.T, text string) {
		if UsesEngineResolver(text) && !strings.Contains(text, protocol.ResolverAddress) {
			t.Errorf("%q", text)
		}
	})
}
