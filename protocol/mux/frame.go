package mux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/huskvm/husk/protocol/framing"
)

// Header of a yamux frame, big endian: version, type, flags (2 bytes), stream id (4), length
// (4). Only frames of type data have a body, of length bytes.
const (
	headerSize = 12

	typeData = 0x0
	typePing = 0x2

	flagSYN = 0x1

	// maxKept bounds the size of the buffer for joined frames that stays allocated, in bytes.
	maxKept = 256 << 10
)

// ErrProtocol is wrapped by a session's error if the peer broke a rule of the channel.
var ErrProtocol = errors.New("agent broke the channel's protocol")

// frameConn is between yamux and the channel. For frames to the peer it joins header and body
// in one write: yamux writes them separately, and each write to a virtio-serial port costs an
// exit of the guest. For frames from the peer guard, if it is not nil, checks each header
// before yamux sees it.
type frameConn struct {
	io.ReadWriteCloser
	guard *framing.Follower

	// Only yamux's one sending goroutine uses it.
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
	if verr := c.guard.Follow(p[:n]); verr != nil {
		// yamux passes over an error while it discards the data of a stream that it does not
		// know. On a closed connection its next read fails, too.
		_ = c.Close()
		return 0, verr
	}
	return n, err
}

func (c *frameConn) violation() error {
	if c.guard == nil {
		return nil
	}
	return c.guard.Err()
}

// newGuard returns a Follower that refuses two kinds of frames with which a hostile guest could
// use up memory of the host. For each ping yamux starts a goroutine that lives until the answer
// is written, which the guest can delay for ever. Each stream that the guest opens waits for an
// Accept that never comes.
func newGuard() *framing.Follower { return framing.New(headerSize, judge) }

func judge(header []byte) (bodySize uint64, err error) {
	kind, flags := header[1], binary.BigEndian.Uint16(header[2:])
	switch {
	case header[0] != 0:
		return 0, fmt.Errorf("%w: frame version %d", ErrProtocol, header[0])
	case kind == typePing:
		return 0, fmt.Errorf("%w: it sent a ping", ErrProtocol)
	case flags&flagSYN != 0:
		return 0, fmt.Errorf("%w: it opened a stream", ErrProtocol)
	case kind == typeData:
		return uint64(binary.BigEndian.Uint32(header[8:])), nil
	}
	return 0, nil
}
