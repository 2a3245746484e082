package vhostuser

import (
	"errors"
	"fmt"
	"sync"
)

const (
	// maxWorkers is how many requests of a queue are in work at once. One that waits,
	// for a lock or a slow disk, takes one of them away.
	maxWorkers = 128

	// maxSegments is of one request: 256 pages, their headers, and room.
	maxSegments = 1024
	// maxBytes bounds a request and the room for its answer, each. FUSE's largest is a
	// MiB of data with its headers.
	maxBytes = 1<<20 + 64<<10

	// smallBytes is what a worker keeps for requests and answers, each; maxLarge is how
	// many that need more are in work at once.
	smallBytes = 16 << 10
	maxLarge   = 16
)

// Flags of a descriptor.
const (
	flagNext     = 1
	flagWrite    = 2
	flagIndirect = 4
)

// segment is a piece of the guest's memory.
type segment struct {
	user uint64 // address in the vmm
	size int
}

// request is one of the guest's, as far as its descriptors say.
type request struct {
	in, out          []segment // to be read, to be written
	inBytes, outRoom int
}

// add appends a descriptor's memory; neighbours become one.
func (q *request) add(all regions, guest uint64, size uint32, write bool) error {
	if size == 0 {
		return nil
	}
	user, found := all.find(guest, uint64(size))
	if !found {
		return fmt.Errorf("%d bytes at %#x are not in the guest's memory", size, guest)
	}
	list, sum := &q.in, &q.inBytes
	if write {
		list, sum = &q.out, &q.outRoom
	} else if len(q.out) > 0 {
		return errors.New("something to be read behind what is to be written")
	}
	if size > maxBytes || *sum+int(size) > maxBytes {
		return fmt.Errorf("more than %d bytes in a request", maxBytes)
	}
	*sum += int(size)
	if n := len(*list); n > 0 && (*list)[n-1].user+uint64((*list)[n-1].size) == user {
		(*list)[n-1].size += int(size)
		return nil
	}
	*list = append(*list, segment{user: user, size: int(size)})
	return nil
}

// worker is what one goroutine needs to answer requests.
type worker struct {
	run   *run
	table []byte // of descriptors
	req   request
	in    [smallBytes]byte
	out   [smallBytes]byte
}

// read finds out what the request that begins at head is made of.
func (w *worker) read(head uint16) error {
	r := w.run
	if head >= r.place.size {
		return fmt.Errorf("there is no descriptor %d", head)
	}
	w.req.in, w.req.out, w.req.inBytes, w.req.outRoom = w.req.in[:0], w.req.out[:0], 0, 0
	all := *r.device.regions.Load()
	first := w.table[:descriptorSize]
	if _, err := r.memory.ReadAt(first, int64(r.place.descriptors+descriptorSize*uint64(head))); err != nil {
		return err
	}
	guest, size, flags := order.Uint64(first), order.Uint32(first[8:]), order.Uint16(first[12:])
	switch {
	case flags&flagIndirect != 0:
		if flags&flagNext != 0 || size == 0 || size%descriptorSize != 0 || size > maxSegments*descriptorSize {
			return fmt.Errorf("a table of %d bytes with flags %#x", size, flags)
		}
		user, found := all.find(guest, uint64(size))
		if !found {
			return fmt.Errorf("a table of %d bytes at %#x is not in the guest's memory", size, guest)
		}
		if _, err := r.memory.ReadAt(w.table[:size], int64(user)); err != nil {
			return err
		}
		return w.follow(all, uint16(size/descriptorSize), 0)
	case flags&flagNext == 0:
		return w.req.add(all, guest, size, flags&flagWrite != 0)
	default:
		// The whole table at once: what follows is anywhere in it.
		b := w.table[:descriptorSize*int(r.place.size)]
		if _, err := r.memory.ReadAt(b, int64(r.place.descriptors)); err != nil {
			return err
		}
		return w.follow(all, r.place.size, head)
	}
}

// follow walks the chain that begins at entry at of the table's n. A chain that is longer
// than its table runs in a circle.
func (w *worker) follow(all regions, n, at uint16) error {
	for range n {
		if at >= n {
			return fmt.Errorf("there is no descriptor %d of %d", at, n)
		}
		b := w.table[descriptorSize*int(at):]
		flags := order.Uint16(b[12:])
		if flags&flagIndirect != 0 {
			return errors.New("a table in a chain")
		}
		if err := w.req.add(all, order.Uint64(b), order.Uint32(b[8:]), flags&flagWrite != 0); err != nil {
			return err
		}
		if flags&flagNext == 0 {
			return nil
		}
		at = order.Uint16(b[14:])
	}
	return errors.New("a chain without an end")
}

// buffers returns room for the request and its answer.
func (w *worker) buffers() (in, out []byte, done func()) {
	in, out, done = w.in[:], w.out[:], func() {}
	var kept []*[]byte
	if w.req.inBytes > smallBytes || w.req.outRoom > smallBytes {
		w.run.device.large <- struct{}{}
		done = func() {
			for _, b := range kept {
				largeBuffers.Put(b)
			}
			<-w.run.device.large
		}
	}
	large := func() []byte {
		b := largeBuffers.Get().(*[]byte) //nolint:errcheck // the pool has nothing else
		kept = append(kept, b)
		return *b
	}
	if w.req.inBytes > smallBytes {
		in = large()
	}
	if w.req.outRoom > smallBytes {
		out = large()
	}
	return in[:w.req.inBytes], out[:w.req.outRoom], done
}

var largeBuffers = sync.Pool{New: func() any {
	b := make([]byte, maxBytes)
	return &b
}}

// answer does one request.
func (w *worker) answer(head uint16) error {
	if err := w.read(head); err != nil {
		return err
	}
	in, out, done := w.buffers()
	defer done()
	at := 0
	for _, s := range w.req.in {
		if _, err := w.run.memory.ReadAt(in[at:at+s.size], int64(s.user)); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		at += s.size
	}
	n := w.run.device.handle(in, out)
	n = max(0, min(n, len(out)))
	left := out[:n]
	for _, s := range w.req.out {
		if len(left) == 0 {
			break
		}
		part := left[:min(len(left), s.size)]
		if err := w.run.write(part, s.user); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
		left = left[len(part):]
	}
	return w.run.put(head, uint32(n))
}

// work answers requests until the queue stops. One worker at a time waits for the next
// request; when it has one, another takes its place.
func (r *run) work() {
	defer r.working.Done()
	w := &worker{run: r, table: make([]byte, descriptorSize*maxSegments)}
	for {
		head, err := r.nextHead()
		r.setIdle(-1)
		if err == nil {
			r.hire()
			if err = w.answer(head); err != nil && !errors.Is(err, errHalted) && !errors.Is(err, errGone) {
				err = fmt.Errorf("request of the guest's: %w", err)
			}
		}
		if err != nil {
			if !errors.Is(err, errHalted) {
				r.device.fail(fmt.Errorf("queue %d: %w", r.queue.index, err))
			}
			return
		}
		r.setIdle(1)
	}
}
