package fileserver

import (
	"bytes"
	"encoding/binary"
	"sync"

	"golang.org/x/sys/unix"
)

// A call is one request on its way. Handlers read its body from the front and append the
// answer; neither can leave the two buffers: a read beyond the end gives zeroes and sets
// short, a write beyond the room is left out and sets full.
type call struct {
	server *Server

	opcode   uint32
	unique   uint64
	nodeID   uint64
	uid, gid uint32 // the client's, not yet mapped
	pid      uint32

	in    []byte // what of the body has not been read
	short bool
	out   []byte // the answer behind its header; its capacity is the client's room
	full  bool
}

var (
	order = binary.LittleEndian
	calls = sync.Pool{New: func() any { return new(call) }}
)

// parse reads the header of request; false where there is none, or where the length in it
// is not the message's.
func (c *call) parse(request []byte) bool {
	if len(request) < inHeaderSize {
		return false
	}
	c.opcode = order.Uint32(request[4:])
	c.unique = order.Uint64(request[8:])
	c.nodeID = order.Uint64(request[16:])
	c.uid = order.Uint32(request[24:])
	c.gid = order.Uint32(request[28:])
	c.pid = order.Uint32(request[32:])
	c.in = request[inHeaderSize:]
	c.short, c.full = false, false
	return uint64(order.Uint32(request)) == uint64(len(request))
}

func (c *call) u32() uint32 {
	if len(c.in) < 4 {
		c.in, c.short = nil, true
		return 0
	}
	v := order.Uint32(c.in)
	c.in = c.in[4:]
	return v
}

func (c *call) u64() uint64 {
	if len(c.in) < 8 {
		c.in, c.short = nil, true
		return 0
	}
	v := order.Uint64(c.in)
	c.in = c.in[8:]
	return v
}

func (c *call) skip(n int) {
	if len(c.in) < n {
		c.in, c.short = nil, true
		return
	}
	c.in = c.in[n:]
}

// text reads bytes up to a zero.
func (c *call) text() (string, unix.Errno) {
	end := bytes.IndexByte(c.in, 0)
	if end < 0 {
		c.in, c.short = nil, true
		return "", unix.EINVAL
	}
	s := string(c.in[:end])
	c.in = c.in[end+1:]
	return s, 0
}

// name reads a name of a directory's entry: one component that leads nowhere else.
func (c *call) name() (string, unix.Errno) {
	s, errno := c.text()
	if errno != 0 {
		return "", errno
	}
	return s, checkName(s)
}

func checkName(s string) unix.Errno {
	switch {
	case s == "", s == ".", s == "..":
		return unix.EINVAL
	case len(s) > unix.NAME_MAX:
		return unix.ENAMETOOLONG
	}
	for i := range len(s) {
		if s[i] == '/' || s[i] == 0 {
			return unix.EINVAL
		}
	}
	return 0
}

func (c *call) put32(v uint32) {
	if cap(c.out)-len(c.out) < 4 {
		c.full = true
		return
	}
	c.out = order.AppendUint32(c.out, v)
}

func (c *call) put64(v uint64) {
	if cap(c.out)-len(c.out) < 8 {
		c.full = true
		return
	}
	c.out = order.AppendUint64(c.out, v)
}

func (c *call) putBytes(b []byte) {
	if cap(c.out)-len(c.out) < len(b) {
		c.full = true
		return
	}
	c.out = append(c.out, b...)
}

func (c *call) putString(s string) {
	if cap(c.out)-len(c.out) < len(s) {
		c.full = true
		return
	}
	c.out = append(c.out, s...)
}

var zeroes [256]byte

// pad appends n zero bytes, at most 256.
func (c *call) pad(n int) { c.putBytes(zeroes[:n]) }

// room is the part of the answer that is still free, at most n bytes. What a handler puts
// there counts once grow is called.
func (c *call) room(n uint32) []byte {
	free := c.out[len(c.out):cap(c.out)]
	if uint64(len(free)) > uint64(n) {
		free = free[:n]
	}
	return free
}

func (c *call) grow(n int) { c.out = c.out[:len(c.out)+n] }
