package fileserver

import (
	"encoding/binary"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// A client speaks to a server by messages of its own making.
type client struct {
	t        testing.TB
	server   *Server
	unique   atomic.Uint64
	uid, gid uint32
}

// initFlags are offered by the tests' client: all that the server knows.
const initFlags = 1<<31 - 1

func newClient(t testing.TB, dir string, change func(*Export)) *client {
	t.Helper()
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	export := Export{Root: root}
	if change != nil {
		change(&export)
	}
	server, err := New(export)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &client{t: t, server: server, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	c.must(opInit, 0, u32(7), u32(36), u32(4096), u32(initFlags), make([]byte, 48))
	return c
}

func u32(v uint32) []byte  { return binary.LittleEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte  { return binary.LittleEndian.AppendUint64(nil, v) }
func text(s string) []byte { return append([]byte(s), 0) }

// request makes a message.
func (c *client) request(opcode uint32, node uint64, body ...[]byte) []byte {
	m := make([]byte, inHeaderSize)
	for _, b := range body {
		m = append(m, b...)
	}
	binary.LittleEndian.PutUint32(m, uint32(len(m)))
	binary.LittleEndian.PutUint32(m[4:], opcode)
	binary.LittleEndian.PutUint64(m[8:], c.unique.Add(2))
	binary.LittleEndian.PutUint64(m[16:], node)
	binary.LittleEndian.PutUint32(m[24:], c.uid)
	binary.LittleEndian.PutUint32(m[28:], c.gid)
	binary.LittleEndian.PutUint32(m[32:], 1)
	return m
}

// send hands a message to the server and takes the answer apart.
func (c *client) send(m []byte) (unix.Errno, []byte) {
	c.t.Helper()
	reply := make([]byte, 2<<20)
	n := c.server.Handle(m, reply)
	if n < outHeaderSize || n != int(binary.LittleEndian.Uint32(reply)) {
		c.t.Fatalf("the answer to %d takes %d bytes and says %d", order.Uint32(m[4:]), n, binary.LittleEndian.Uint32(reply))
	}
	if got, want := order.Uint64(reply[8:]), order.Uint64(m[8:]); got != want {
		c.t.Fatalf("the answer is to %d, not to %d", got, want)
	}
	return unix.Errno(-int32(binary.LittleEndian.Uint32(reply[4:]))), reply[outHeaderSize:n]
}

func (c *client) try(opcode uint32, node uint64, body ...[]byte) (unix.Errno, []byte) {
	c.t.Helper()
	return c.send(c.request(opcode, node, body...))
}

func (c *client) must(opcode uint32, node uint64, body ...[]byte) []byte {
	c.t.Helper()
	errno, answer := c.try(opcode, node, body...)
	if errno != 0 {
		c.t.Fatalf("operation %d on node %d: %v", opcode, node, errno)
	}
	return answer
}

// lookup returns the number of an entry's node.
func (c *client) lookup(parent uint64, name string) uint64 {
	c.t.Helper()
	return order.Uint64(c.must(opLookup, parent, text(name)))
}

func (c *client) open(node uint64, flags int) uint64 {
	c.t.Helper()
	return order.Uint64(c.must(opOpen, node, u32(uint32(flags)), u32(0)))
}

func (c *client) refused(want unix.Errno, opcode uint32, node uint64, body ...[]byte) {
	c.t.Helper()
	if errno, _ := c.try(opcode, node, body...); errno != want {
		c.t.Errorf("operation %d on node %d: %v, want %v", opcode, node, errno, want)
	}
}
