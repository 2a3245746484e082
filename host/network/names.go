package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/huskvm/husk/protocol"
)

const (
	// nameTimeout bounds one question. An engine's resolver asks other servers in turn.
	nameTimeout = 12 * time.Second
	// maxQuestions bounds the questions of one guest that are being asked. Further ones wait.
	maxQuestions = 64
	// maxAnswer is the size of the largest DNS message, in bytes.
	maxAnswer = 0xffff
)

// UsesEngineResolver says whether a resolv.conf names the resolver that an engine runs in the
// container's network namespace. The guest cannot reach that resolver by itself.
func UsesEngineResolver(resolvConf string) bool {
	for line := range strings.Lines(resolvConf) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" && f[1] == protocol.ResolverAddress {
			return true
		}
	}
	return false
}

// RelayNames asks the resolver of the calling process's network namespace the guest's
// questions, until the stream ends. The guest only sends the messages: to which address they go
// is fixed.
func RelayNames(ctx context.Context, guest io.ReadWriter) error {
	return relayNames(ctx, guest, net.JoinHostPort(protocol.ResolverAddress, "53"))
}

func relayNames(ctx context.Context, guest io.ReadWriter, resolver string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	places := make(chan struct{}, maxQuestions)
	var write sync.Mutex
	for {
		q, err := protocol.ReadNameMessage(guest)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		places <- struct{}{}
		go func() {
			defer func() { <-places }()
			answer, err := exchange(ctx, resolver, q)
			if err != nil {
				return // no answer came; the guest asks again, as on any network
			}
			write.Lock()
			defer write.Unlock()
			// A stream that takes no answer ends, and then gives no further question.
			_ = protocol.NameMessage{ID: q.ID, TCP: q.TCP, Message: answer}.Write(guest)
		}()
	}
}

func exchange(ctx context.Context, resolver string, q protocol.NameMessage) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	kind := "udp"
	if q.TCP {
		kind = "tcp"
	}
	c, err := (&net.Dialer{}).DialContext(ctx, kind, resolver)
	if err != nil {
		return nil, fmt.Errorf("ask resolver: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if q.TCP {
		return exchangeTCP(c, q.Message)
	}
	if _, err := c.Write(q.Message); err != nil {
		return nil, fmt.Errorf("ask resolver: %w", err)
	}
	buf := make([]byte, maxAnswer)
	n, err := c.Read(buf)
	if err != nil {
		return nil, fmt.Errorf("read resolver's answer: %w", err)
	}
	return buf[:n], nil
}

// exchangeTCP sends a message and returns the answer, each after its length (RFC 1035 section
// 4.2.2).
func exchangeTCP(c net.Conn, message []byte) ([]byte, error) {
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
	if _, err := c.Write(framed); err != nil {
		return nil, fmt.Errorf("ask resolver: %w", err)
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, fmt.Errorf("read resolver's answer: %w", err)
	}
	answer := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, fmt.Errorf("read resolver's answer: %w", err)
	}
	return answer, nil
}
