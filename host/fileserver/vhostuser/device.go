// Package vhostuser is the transport below a file server: the backend of a
// vhost-user-fs device, which reads the guest's requests from virtqueues and writes the
// answers back. It knows the vhost-user protocol and the split virtqueue, and nothing of
// files.
//
// Both sides of it are taken to be hostile, the vmm, whose messages say where the queues
// are, and the guest, whose queues say where its requests are. Each address is checked
// against the regions of RAM that the vmm has told of, what is read is a copy, and what a
// request may have of anything is bounded. Whoever breaks the protocol ends the device.
package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// maxQueues: one for what must not wait, and one for requests.
const maxQueues = 2

// Features of virtio and of vhost-user that are offered.
const (
	featureIndirect         = 1 << 28 // VIRTIO_RING_F_INDIRECT_DESC
	featureProtocolFeatures = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	featureVersion1         = 1 << 32 // VIRTIO_F_VERSION_1
	offered                 = featureIndirect | featureProtocolFeatures | featureVersion1

	protocolMQ       = 1 << 0
	protocolReplyAck = 1 << 3
	offeredProtocol  = protocolMQ | protocolReplyAck
)

// Handler answers one request: reply is the room there is for the answer, whose length is
// returned. Many are called at once.
type Handler func(request, reply []byte) int

// Device is a vhost-user-fs backend.
type Device struct {
	handle  Handler
	memory  atomic.Pointer[Memory]
	regions atomic.Pointer[regions]

	// What the vmm has said; of the goroutine of Serve alone.
	conn     *net.UnixConn
	features uint64
	protocol uint64
	queues   [maxQueues]queue

	mu  sync.Mutex
	err error // of a queue
	// stopTimeout is how long requests in work may take to end when their queue stops. The
	// vmm waits meanwhile. Of those that take longer nothing is written any more.
	stopTimeout time.Duration
	// large bounds how many requests of much data are in work at once.
	large chan struct{}
}

// New returns a device whose requests handle answers.
func New(handle Handler) *Device {
	d := &Device{handle: handle, stopTimeout: 5 * time.Second, large: make(chan struct{}, maxLarge)}
	d.regions.Store(&regions{})
	for i := range d.queues {
		d.queues[i].index, d.queues[i].call, d.queues[i].kick = i, -1, -1
	}
	return d
}

// SetMemory gives the device the vmm's memory. It must come before the guest runs.
func (d *Device) SetMemory(m Memory) { d.memory.Store(&m) }

// goneGrace is how long a vmm whose memory has gone may take to close its connection.
const goneGrace = 2 * time.Second

// Serve does what the vmm and its guest ask for until the vmm closes the connection, for
// which it returns nil. Any other end is an error that says what was done wrong.
func (d *Device) Serve(conn *net.UnixConn) error {
	d.conn = conn
	err := d.serve()
	for i := range d.queues {
		_, _ = d.queues[i].stop() // they end with this process at the latest
		d.queues[i].letGo()
	}
	if errors.Is(err, errGone) {
		// The kernel takes the memory of a process that ends before its descriptors.
		_ = conn.SetReadDeadline(time.Now().Add(goneGrace))
		if _, rerr := io.Copy(io.Discard, conn); rerr == nil {
			return nil
		}
	}
	return err
}

func (d *Device) serve() error {
	for {
		m, err := receive(d.conn)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.err
		}
		if err != nil {
			return fmt.Errorf("read message of the vmm: %w", err)
		}
		err = d.obey(m)
		m.close()
		if err != nil {
			return fmt.Errorf("message %d of the vmm: %w", m.request, err)
		}
	}
}

// fail ends Serve with the first error of a queue.
func (d *Device) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = err
		_ = d.conn.SetReadDeadline(time.Now()) // of a connection that is open
	}
}

// obey does what a message says and answers it.
func (d *Device) obey(m *message) error {
	switch m.request {
	case getFeatures:
		return replyU64(d.conn, m, offered)
	case getProtocolFeatures:
		return replyU64(d.conn, m, offeredProtocol)
	case getQueueNum:
		return replyU64(d.conn, m, maxQueues)
	case getVringBase:
		return d.getBase(m)
	}
	if err := d.set(m); err != nil {
		return err
	}
	if m.flags&flagNeedReply != 0 && d.protocol&protocolReplyAck != 0 {
		return replyU64(d.conn, m, 0)
	}
	return nil
}

// set is for messages without an answer of their own.
func (d *Device) set(m *message) error {
	switch m.request {
	case setOwner:
		return nil
	case resetOwner:
		return d.reset()
	case setFeatures:
		return d.setFeatures(m)
	case setProtocolFeatures:
		v, err := m.u64()
		if err == nil && v&^offeredProtocol != 0 {
			err = fmt.Errorf("protocol features %#x were not offered", v)
		}
		d.protocol = v
		return err
	case setMemTable:
		return d.setMemTable(m)
	case setVringNum, setVringBase, setVringEnable:
		return d.setVring(m)
	case setVringAddr:
		return d.setAddr(m)
	case setVringKick, setVringCall, setVringErr:
		return d.setDescriptor(m)
	}
	return errors.New("it is for a feature that was not offered")
}

func (d *Device) reset() error {
	for i := range d.queues {
		if _, err := d.queues[i].stop(); err != nil {
			return err
		}
		d.queues[i].enabled = false
	}
	return nil
}

func (d *Device) setFeatures(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if v&^uint64(offered) != 0 {
		return fmt.Errorf("features %#x were not offered", v)
	}
	d.features = v
	if v&featureProtocolFeatures == 0 {
		// Of a vmm that does not enable queues one by one.
		for i := range d.queues {
			d.queues[i].enabled = true
			if err := d.start(&d.queues[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Device) setMemTable(m *message) error {
	if len(m.payload) < 8 {
		return fmt.Errorf("%d bytes are no table of memory", len(m.payload))
	}
	n := order.Uint32(m.payload)
	rest := m.payload[8:]
	if n > maxRegions || len(rest) < int(n)*regionSize || len(m.fds) != int(n) {
		return fmt.Errorf("%d regions of memory in %d bytes with %d descriptors", n, len(rest), len(m.fds))
	}
	table := make(regions, n)
	for i := range table {
		b := rest[i*regionSize:]
		// What follows is where the region begins in its descriptor, which nobody maps.
		table[i] = region{guest: order.Uint64(b), size: order.Uint64(b[8:]), user: order.Uint64(b[16:])}
	}
	if err := table.check(); err != nil {
		return err
	}
	for i := range d.queues {
		if q := &d.queues[i]; q.run != nil {
			if err := q.place.check(table); err != nil {
				return err
			}
		}
	}
	d.regions.Store(&table)
	return nil
}

func (d *Device) setVring(m *message) error {
	i, v, err := m.vring()
	if err != nil {
		return err
	}
	q := &d.queues[i]
	switch m.request {
	case setVringEnable:
		if q.enabled = v == 1; q.enabled {
			return d.start(q)
		}
		_, err := q.stop()
		return err
	case setVringNum:
		if q.run != nil || v == 0 || v > maxSize || v&(v-1) != 0 {
			return fmt.Errorf("queue %d cannot have %d entries now", i, v)
		}
		q.place.size = uint16(v)
	case setVringBase:
		if q.run != nil || v > 0xffff {
			return fmt.Errorf("queue %d cannot begin at %d now", i, v)
		}
		q.next = uint16(v)
	}
	return nil
}

func (d *Device) setAddr(m *message) error {
	const size = 40
	if len(m.payload) != size {
		return fmt.Errorf("%d bytes in place of %d", len(m.payload), size)
	}
	n := order.Uint32(m.payload)
	if n >= maxQueues {
		return fmt.Errorf("there is no queue %d", n)
	}
	q := &d.queues[n]
	if q.run != nil {
		return fmt.Errorf("queue %d cannot move while it is in use", n)
	}
	q.place.descriptors = order.Uint64(m.payload[8:])
	q.place.used = order.Uint64(m.payload[16:])
	q.place.available = order.Uint64(m.payload[24:])
	return nil
}

// setDescriptor: 8 bits say which queue, one more that no descriptor comes along.
func (d *Device) setDescriptor(m *message) error {
	const none = 1 << 8
	v, err := m.u64()
	if err != nil {
		return err
	}
	i, fd := int(v&0xff), -1
	if i >= maxQueues {
		return fmt.Errorf("there is no queue %d", i)
	}
	if v&none == 0 {
		if fd, err = m.takeFD(); err != nil {
			return err
		}
	}
	q := &d.queues[i]
	switch m.request {
	case setVringCall:
		q.setCall(fd)
	case setVringKick:
		if fd < 0 {
			return fmt.Errorf("queue %d would have to be polled", i)
		}
		if _, err := q.stop(); err != nil {
			_ = unix.Close(fd)
			return err
		}
		q.setKick(fd)
		return d.start(q)
	default:
		if fd >= 0 {
			_ = unix.Close(fd) // where errors are told of: they end the device
		}
	}
	return nil
}

// getBase stops a queue and says where it has stopped.
func (d *Device) getBase(m *message) error {
	i, _, err := m.vring()
	if err != nil {
		return err
	}
	q := &d.queues[i]
	next, err := q.stop()
	if err != nil {
		return err
	}
	q.setKick(-1) // it starts anew with the next
	b := order.AppendUint32(nil, uint32(i))
	return reply(d.conn, m, order.AppendUint32(b, uint32(next)))
}

// start starts a queue once all is known of it.
func (d *Device) start(q *queue) error {
	if q.run != nil || !q.enabled || q.kick < 0 || q.place.size == 0 || q.place.descriptors == 0 {
		return nil
	}
	memory := d.memory.Load()
	if memory == nil {
		return errors.New("the guest runs before its memory can be read")
	}
	if err := q.place.check(*d.regions.Load()); err != nil {
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	return q.begin(d, *memory)
}
