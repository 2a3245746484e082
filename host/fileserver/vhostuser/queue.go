package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxSize        = 1024 // of a queue, in entries
	descriptorSize = 16   // bytes
	usedSize       = 8    // bytes of an entry of the used ring
	ringHead       = 4    // bytes before the entries of either ring: flags and index
	ringIndex      = 2    // where the index is
)

// place is where a queue is, in the vmm's addresses.
type place struct {
	size                         uint16
	descriptors, available, used uint64
}

func (p place) check(all regions) error {
	n := uint64(p.size)
	for _, part := range []struct {
		name         string
		at, size, to uint64 // to: what it is aligned to
	}{
		{"descriptors", p.descriptors, n * descriptorSize, 16},
		{"available ring", p.available, ringHead + 2*n, 2},
		{"used ring", p.used, ringHead + n*usedSize, 4},
	} {
		if part.at%part.to != 0 || !all.inside(part.at, part.size) {
			return fmt.Errorf("the %s at %#x are not in the guest's memory", part.name, part.at)
		}
	}
	return nil
}

// queue is a virtqueue as the vmm describes it, and its run, if it has been started.
type queue struct {
	index   int
	place   place
	next    uint16 // index of the next request that nobody has taken
	enabled bool
	kick    int // eventfd; -1: none
	run     *run

	mu   sync.Mutex
	call int // eventfd; -1: none
}

func (q *queue) setCall(fd int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.call >= 0 {
		_ = unix.Close(q.call)
	}
	q.call = fd
}

// setKick is for a queue that is stopped.
func (q *queue) setKick(fd int) {
	if q.kick >= 0 {
		_ = unix.Close(q.kick)
	}
	q.kick = fd
}

func (q *queue) letGo() {
	q.setKick(-1)
	q.setCall(-1)
}

// run is the time of a queue between its start and its stop.
type run struct {
	queue  *queue
	device *Device
	memory Memory
	place  place
	kick   int
	halt   int // eventfd: at its event the workers end

	// take is held by the worker that takes the next request, or waits for one.
	take  sync.Mutex
	next  uint16   // index of the next request
	known uint16   // index up to which ahead has been read
	ahead []uint16 // ring of the heads of requests, by index
	ended bool

	crowd   sync.Mutex
	workers int // all
	idle    int // those that wait for take, or hold it
	working sync.WaitGroup

	give sync.Mutex
	used uint16 // index of the used ring

	gate sync.RWMutex // held for reading while the guest's memory is written
	over bool         // nobody is to write any more
}

func (q *queue) begin(d *Device, memory Memory) error {
	halt, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	r := &run{
		queue: q, device: d, memory: memory, place: q.place, kick: q.kick, halt: halt,
		next: q.next, known: q.next, ahead: make([]uint16, q.place.size),
	}
	if r.used, err = r.index(q.place.used); err != nil {
		_ = unix.Close(halt)
		return fmt.Errorf("read used ring: %w", err)
	}
	q.run = r
	r.hire()
	return nil
}

// stop ends a queue's run, if there is one, and returns the index of the next request.
func (q *queue) stop() (uint16, error) {
	r := q.run
	if r == nil {
		return q.next, nil
	}
	if _, err := unix.Write(r.halt, order.AppendUint64(nil, 1)); err != nil {
		return 0, os.NewSyscallError("write", err)
	}
	done := make(chan struct{})
	go func() {
		r.working.Wait()
		_ = unix.Close(r.halt)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(r.device.stopTimeout):
	}
	r.gate.Lock()
	r.over = true
	r.gate.Unlock()
	r.take.Lock()
	defer r.take.Unlock()
	q.next, q.run = r.next, nil
	return q.next, nil
}

// hire starts a worker.
func (r *run) hire() {
	r.crowd.Lock()
	defer r.crowd.Unlock()
	if r.idle > 0 || r.workers == maxWorkers {
		return
	}
	r.workers++
	r.idle++
	r.working.Add(1)
	go r.work()
}

func (r *run) setIdle(n int) {
	r.crowd.Lock()
	r.idle += n
	r.crowd.Unlock()
}

// errHalted ends a worker without a reason.
var errHalted = errors.New("queue has stopped")

// nextHead returns the first descriptor of the next request, and waits for it.
func (r *run) nextHead() (uint16, error) {
	r.take.Lock()
	defer r.take.Unlock()
	for {
		if r.ended {
			return 0, errHalted
		}
		if r.next != r.known {
			head := r.ahead[r.next%r.place.size]
			r.next++
			return head, nil
		}
		more, err := r.readAhead()
		if err != nil {
			r.ended = true
			return 0, err
		}
		if more {
			continue
		}
		if err := r.awaitKick(); err != nil {
			r.ended = true
			return 0, err
		}
	}
}

// write is refused once the queue has stopped: the guest then uses its memory for other
// things.
func (r *run) write(b []byte, user uint64) error {
	r.gate.RLock()
	defer r.gate.RUnlock()
	if r.over {
		return errHalted
	}
	_, err := r.memory.WriteAt(b, int64(user))
	return err
}

func (r *run) index(ring uint64) (uint16, error) {
	var b [2]byte
	_, err := r.memory.ReadAt(b[:], int64(ring+ringIndex))
	return order.Uint16(b[:]), err
}

// readAhead reads all requests that there are from the available ring at once.
func (r *run) readAhead() (more bool, err error) {
	index, err := r.index(r.place.available)
	if err != nil {
		return false, fmt.Errorf("read available ring: %w", err)
	}
	n := index - r.known
	if n > r.place.size {
		return false, fmt.Errorf("the guest has made %d requests of %d", n, r.place.size)
	}
	var buf [2 * maxSize]byte
	for n > 0 {
		at := r.known % r.place.size
		part := min(n, r.place.size-at)
		b := buf[:2*int(part)]
		if _, err := r.memory.ReadAt(b, int64(r.place.available+ringHead+2*uint64(at))); err != nil {
			return false, fmt.Errorf("read available ring: %w", err)
		}
		for i := range part {
			r.ahead[at+i] = order.Uint16(b[2*i:])
		}
		r.known += part
		n -= part
		more = true
	}
	return more, nil
}

// awaitKick returns when the guest may have made a request, or with errHalted.
func (r *run) awaitKick() error {
	fds := []unix.PollFd{{Fd: int32(r.kick), Events: unix.POLLIN}, {Fd: int32(r.halt), Events: unix.POLLIN}}
	_, err := unix.Poll(fds, -1)
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return os.NewSyscallError("poll", err)
	case fds[1].Revents != 0:
		return errHalted
	case fds[0].Revents&unix.POLLIN == 0:
		return errors.New("the vmm has closed the queue's event")
	}
	var b [8]byte
	n, err := unix.Read(r.kick, b[:])
	if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("read", err)
	}
	if err == nil && n == 0 {
		return errors.New("the vmm has closed the queue's event")
	}
	return nil
}

// put hands a request back with the bytes that were written to it, and tells the guest.
// Each time: under emulation with one CPU a guest's barrier may be no barrier, and a
// guest that is thought to be awake could sleep for good.
func (r *run) put(head uint16, written uint32) error {
	r.give.Lock()
	defer r.give.Unlock()
	b := order.AppendUint32(make([]byte, 0, usedSize), uint32(head))
	b = order.AppendUint32(b, written)
	at := r.place.used + ringHead + usedSize*uint64(r.used%r.place.size)
	if err := r.write(b, at); err != nil {
		return fmt.Errorf("write used ring: %w", err)
	}
	r.used++
	if err := r.write(order.AppendUint16(b[:0], r.used), r.place.used+ringIndex); err != nil {
		return fmt.Errorf("write used ring: %w", err)
	}
	r.queue.mu.Lock()
	defer r.queue.mu.Unlock()
	if r.queue.call >= 0 {
		// A full counter is as good.
		_, _ = unix.Write(r.queue.call, order.AppendUint64(b[:0], 1))
	}
	return nil
}
