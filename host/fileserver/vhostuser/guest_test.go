package vhostuser

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ramSize  = 1 << 20
	ramGuest = 0x100000       // where the guest has it
	ramUser  = 0x7f0000000000 // where the vmm has it

	// Of a queue, from the beginning of its part of the RAM.
	queueRoom   = 0x10000
	atAvailable = 0x8000
	atUsed      = 0xa000
	atData      = 0x40000 // of the RAM
)

// ram is the vmm's memory: what is not the guest's is an error, that no test may see.
type ram struct {
	t     testing.TB
	mu    sync.Mutex
	bytes [ramSize]byte
}

func (r *ram) part(n int, off int64) []byte {
	at := off - ramUser
	if at < 0 || at+int64(n) > ramSize {
		r.t.Errorf("%d bytes at %#x are not the guest's", n, off)
		return make([]byte, n)
	}
	return r.bytes[at : at+int64(n)]
}

func (r *ram) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return copy(p, r.part(len(p), off)), nil
}

func (r *ram) WriteAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return copy(r.part(len(p), off), p), nil
}

func (r *ram) put(at int, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.bytes[at:], b)
}

func (r *ram) get(at, n int) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.bytes[at : at+n])
}

// guest is a vmm and its guest.
type guest struct {
	t      testing.TB
	ram    *ram
	conn   *net.UnixConn
	device *Device
	ended  chan struct{}
	err    error // of Serve
	size   uint16
	kick   [maxQueues]int
	call   [maxQueues]int
	next   [maxQueues]uint16 // of the available ring
	seen   [maxQueues]uint16 // of the used ring
}

// echo answers with the request.
func echo(request, reply []byte) int { return copy(reply, request) }

func newGuest(t testing.TB, handle Handler) *guest {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := [2]*net.UnixConn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "device")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		conns[i] = c.(*net.UnixConn) //nolint:errcheck // a unix socket
	}
	g := &guest{t: t, ram: &ram{t: t}, conn: conns[0], device: New(handle), ended: make(chan struct{}), size: 16}
	g.device.SetMemory(g.ram)
	go func() {
		g.err = g.device.Serve(conns[1])
		_ = conns[1].Close()
		close(g.ended)
	}()
	t.Cleanup(func() {
		_ = g.conn.Close()
		<-g.ended
	})
	return g
}

func (g *guest) send(request uint32, payload []byte, fds ...int) {
	g.t.Helper()
	b := order.AppendUint32(nil, request)
	b = order.AppendUint32(b, flagVersion)
	b = order.AppendUint32(b, uint32(len(payload)))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	// A device that has ended takes nothing: the test looks at why.
	_, _, _ = g.conn.WriteMsgUnix(append(b, payload...), rights, nil)
}

func (g *guest) answer(request uint32) []byte {
	g.t.Helper()
	_ = g.conn.SetReadDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 64)
	n, err := g.conn.Read(b)
	if err != nil || n < headerSize || order.Uint32(b) != request || order.Uint32(b[4:]) != flagVersion|flagReply {
		g.t.Fatalf("answer to %d: %x, %v", request, b[:n], err)
	}
	return b[headerSize:n]
}

func u32s(all ...uint32) []byte {
	var b []byte
	for _, v := range all {
		b = order.AppendUint32(b, v)
	}
	return b
}

func u64s(all ...uint64) []byte {
	var b []byte
	for _, v := range all {
		b = order.AppendUint64(b, v)
	}
	return b
}

func (g *guest) eventfd() int {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func (g *guest) table(user, guest, size uint64) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		g.t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	g.send(setMemTable, append(u32s(1, 0), u64s(guest, size, user, 0)...), int(file.Fd()))
}

// handshake is QEMU's, for the queues from the index base on.
func (g *guest) handshake() {
	g.send(getFeatures, nil)
	if f := order.Uint64(g.answer(getFeatures)); f&featureVersion1 == 0 {
		g.t.Fatalf("features %#x", f)
	}
	g.send(getProtocolFeatures, nil)
	g.answer(getProtocolFeatures)
	g.send(setProtocolFeatures, u64s(offeredProtocol))
	g.send(getQueueNum, nil)
	g.answer(getQueueNum)
	g.send(setOwner, nil)
	g.send(setFeatures, u64s(offered))
	g.table(ramUser, ramGuest, ramSize)
	for i := range uint32(maxQueues) {
		g.kick[i], g.call[i] = g.eventfd(), g.eventfd()
		at := ramUser + uint64(i)*queueRoom
		g.send(setVringNum, u32s(i, uint32(g.size)))
		g.send(setVringBase, u32s(i, uint32(g.next[i])))
		g.send(setVringAddr, append(u32s(i, 0), u64s(at, at+atUsed, at+atAvailable, 0)...))
		g.send(setVringKick, u64s(uint64(i)), g.kick[i])
		g.send(setVringCall, u64s(uint64(i)), g.call[i])
		g.send(setVringEnable, u32s(i, 1))
	}
}

// entry is a descriptor.
type entry struct {
	addr  uint64
	size  uint32
	flags uint16
	next  uint16
}

func (e entry) bytes() []byte {
	b := order.AppendUint64(nil, e.addr)
	b = order.AppendUint32(b, e.size)
	b = order.AppendUint16(b, e.flags)
	return order.AppendUint16(b, e.next)
}

func (g *guest) describe(queue int, entries map[uint16]entry) {
	for i, e := range entries {
		g.ram.put(queue*queueRoom+int(i)*descriptorSize, e.bytes())
	}
}

// offer makes the request that begins at head available, and kicks.
func (g *guest) offer(queue int, heads ...uint16) {
	at := queue*queueRoom + atAvailable
	for _, head := range heads {
		g.ram.put(at+ringHead+2*int(g.next[queue]%g.size), order.AppendUint16(nil, head))
		g.next[queue]++
	}
	g.ram.put(at+ringIndex, order.AppendUint16(nil, g.next[queue]))
	if _, err := unix.Write(g.kick[queue], u64s(1)); err != nil {
		g.t.Fatal(err)
	}
}

var errDeviceEnded = errors.New("device has ended")

// await returns the next of the used ring.
func (g *guest) await(queue int) (head, written uint32, err error) {
	deadline := time.Now().Add(time.Minute)
	for {
		used := queue*queueRoom + atUsed
		if order.Uint16(g.ram.get(used+ringIndex, 2)) != g.seen[queue] {
			b := g.ram.get(used+ringHead+usedSize*int(g.seen[queue]%g.size), usedSize)
			g.seen[queue]++
			return order.Uint32(b), order.Uint32(b[4:]), nil
		}
		if time.Now().After(deadline) {
			g.t.Fatal("no answer")
		}
		select {
		case <-g.ended:
			return 0, 0, errDeviceEnded
		default:
		}
		fds := []unix.PollFd{{Fd: int32(g.call[queue]), Events: unix.POLLIN}}
		const mostMS = 50 // for the device to end meanwhile
		_, _ = unix.Poll(fds, mostMS)
		_, _ = unix.Read(g.call[queue], make([]byte, 8))
	}
}
