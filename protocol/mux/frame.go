package mux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// A yamux frame begins with: version, type, flags (2 bytes), stream id (4),
// length (4), big endian. Only type data has a body of length bytes.
const (
	headerSize = 12

	typeData = 0x0
	typePing = 0x2

	flagSYN = 0x1

	// maxKept bounds the join buffer that stays allocated, in bytes.
	maxKept = 256 << 10
)

// ErrProtocol is wrapped by a session's error when the agent broke the rules of
// the channel.
var ErrProtocol = errors.New("agent broke the channel's protocol")

// frameConn stands between yamux and the channel. On the way out it joins the
// header of a data frame with its body: yamux writes them apart, and each write
// to a virtio-serial port costs an exit from the guest. On the way in the guard,
// if there is one, looks at each header before yamux acts on it.
type frameConn struct {
	io.ReadWriteCloser
	guard *guard

	// Only yamux's one sending goroutine writes.
	joined []byte
}

func (c *frameConn) Write(p []byte) (int, error) {
	if len(c.joined) == 0 && isDataHeader(p) {
		c.joined = append(c.joined, p...)
		return len(p), nil
	}
	if len(c.joined) == 0 {
		return c.ReadWriteCloser.Write(p)
	}
	c.joined = append(c.joined, p...)
	_, err := c.ReadWriteCloser.Write(c.joined)
	c.joined = c.joined[:0]
	if cap(c.joined) > maxKept {
		c.joined = nil
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func isDataHeader(p []byte) bool {
	return len(p) == headerSize && p[1] == typeData && binary.BigEndian.Uint32(p[8:]) > 0
}

func (c *frameConn) Read(p []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(p)
	if c.guard == nil {
		return n, err
	}
	if verr := c.guard.check(p[:n]); verr != nil {
		return 0, verr
	}
	return n, err
}

func (c *frameConn) violation() error {
	if c.guard == nil {
		return nil
	}
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	return c.guard.err
}

// guard refuses what yamux would let a hostile guest do: a ping starts a
// goroutine that lives until its answer is written, which the guest can delay
// for ever, and a stream the guest opens waits for an Accept that never comes.
type guard struct {
	header [headerSize]byte
	have   int    // bytes of header seen
	body   uint32 // bytes of body still to pass

	mu  sync.Mutex
	err error
}

// check follows the frames through p, however they are cut.
func (g *guard) check(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			n := min(uint64(g.body), uint64(len(p)))
			g.body -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(g.header[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have < headerSize {
			return nil
		}
		g.have = 0
		if err := g.judge(); err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.err = err
			return err
		}
	}
	return nil
}

func (g *guard) judge() error {
	kind, flags := g.header[1], binary.BigEndian.Uint16(g.header[2:])
	switch {
	case g.header[0] != 0:
		return fmt.Errorf("%w: frame version %d", ErrProtocol, g.header[0])
	case kind == typePing:
		return fmt.Errorf("%w: it sent a ping", ErrProtocol)
	case flags&flagSYN != 0:
		return fmt.Errorf("%w: it opened a stream", ErrProtocol)
	}
	if kind == typeData {
		g.body = binary.BigEndian.Uint32(g.header[8:])
	}
	return nil
}
