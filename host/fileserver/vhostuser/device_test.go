package vhostuser

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A request in several pieces, by a chain, by a table, and on both queues.
func TestRequests(t *testing.T) {
	g := newGuest(t, echo)
	g.handshake()
	text := []byte("two pieces of a request, two of an answer")
	const data = ramGuest + atData
	n := uint32(len(text))
	pieces := []entry{
		{data, 10, flagNext, 9},
		{data + 0x1000, n - 10, flagNext, 3},
		{data + 0x2000, 5, flagNext | flagWrite, 0},
		{data + 0x3000, 100, flagWrite, 0},
	}
	put := func() {
		g.ram.put(atData, text[:10])
		g.ram.put(atData+0x1000, text[10:])
		g.ram.put(atData+0x2000, make([]byte, 0x2000))
	}
	check := func(queue int, wantHead uint32) {
		t.Helper()
		head, written, err := g.await(queue)
		got := append(g.ram.get(atData+0x2000, 5), g.ram.get(atData+0x3000, len(text)-5)...)
		if err != nil || head != wantHead || written != n || !bytes.Equal(got, text) {
			t.Errorf("answer %d of %d bytes: %q, %v", head, written, got, err)
		}
	}
	for queue := range maxQueues {
		put()
		g.describe(queue, map[uint16]entry{7: pieces[0], 9: pieces[1], 3: pieces[2], 0: pieces[3]})
		g.offer(queue, 7)
		check(queue, 7)
	}
	put()
	var table []byte
	for i, e := range pieces {
		e.next = uint16(i + 1)
		table = append(table, e.bytes()...)
	}
	g.ram.put(atData+0x8000, table)
	g.describe(1, map[uint16]entry{15: {data + 0x8000, uint32(len(table)), flagIndirect, 0}})
	g.offer(1, 15)
	check(1, 15)
}

// Many at once, also around the end of the rings, some of them large.
func TestManyRequests(t *testing.T) {
	g := newGuest(t, echo)
	g.handshake()
	const rounds = 200
	for round := range rounds {
		var heads []uint16
		for i := range uint16(8) {
			size := uint32(16 + int(i)*3000)
			at := uint64(ramGuest + atData + int(i)*0x10000)
			g.ram.put(int(at-ramGuest), bytes.Repeat([]byte{byte(round), byte(i)}, int(size/2)))
			g.describe(1, map[uint16]entry{2 * i: {at, size, flagNext, 2*i + 1}, 2*i + 1: {at + 0x8000, size, flagWrite, 0}})
			heads = append(heads, 2*i)
		}
		g.offer(1, heads...)
		seen := map[uint32]bool{}
		for range heads {
			head, written, err := g.await(1)
			i := int(head / 2)
			at := atData + i*0x10000
			if size := 16 + i*3000; err != nil || seen[head] || int(written) != size || !bytes.Equal(g.ram.get(at, size), g.ram.get(at+0x8000, size)) {
				t.Fatalf("round %d: answer to %d of %d bytes, %v", round, head, written, err)
			}
			seen[head] = true
		}
	}
}

// QEMU shakes hands again on the same connection when a device comes back, and when a
// driver does; the queues may be elsewhere and go on from any index.
func TestSecondHandshake(t *testing.T) {
	g := newGuest(t, echo)
	ask := func() {
		t.Helper()
		g.ram.put(atData, []byte("hello"))
		g.describe(1, map[uint16]entry{0: {ramGuest + atData, 5, flagNext, 1}, 1: {ramGuest + atData + 0x100, 64, flagWrite, 0}})
		g.offer(1, 0)
		if _, n, err := g.await(1); err != nil || n != 5 {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	stop := func(want uint32) {
		t.Helper()
		for i := range uint32(maxQueues) {
			g.send(setVringEnable, u32s(i, 0))
			g.send(getVringBase, u32s(i, 0))
			if b := g.answer(getVringBase); i == 1 && order.Uint32(b[4:]) != want {
				t.Errorf("queue stopped at %d, want %d", order.Uint32(b[4:]), want)
			}
		}
	}
	g.handshake()
	ask()
	ask()
	stop(2)
	g.handshake() // goes on
	ask()
	stop(3)
	// A driver that begins anew.
	g.ram.put(0, make([]byte, maxQueues*queueRoom))
	g.next, g.seen = [maxQueues]uint16{}, [maxQueues]uint16{}
	g.handshake()
	ask()
	stop(1)
	g.next[1], g.seen[1] = 0xfffe, 0xfffe
	g.ram.put(queueRoom+atAvailable+ringIndex, []byte{0xfe, 0xff})
	g.ram.put(queueRoom+atUsed+ringIndex, []byte{0xfe, 0xff})
	g.handshake()
	for range 5 {
		ask()
	}
}

// A request that hangs delays no other, and of one that comes back after its queue has
// stopped nothing is written.
func TestStuckRequest(t *testing.T) {
	stuck, entered := make(chan struct{}), make(chan struct{})
	g := newGuest(t, func(request, reply []byte) int {
		if request[0] == 's' {
			entered <- struct{}{}
			<-stuck
		}
		return copy(reply, request)
	})
	g.device.stopTimeout = 100 * time.Millisecond
	g.handshake()
	g.ram.put(atData, []byte("s"))
	g.ram.put(atData+1, []byte("x"))
	g.describe(1, map[uint16]entry{
		0: {ramGuest + atData, 1, flagNext, 1}, 1: {ramGuest + atData + 0x100, 8, flagWrite, 0},
		2: {ramGuest + atData + 1, 1, flagNext, 3}, 3: {ramGuest + atData + 0x200, 8, flagWrite, 0},
	})
	g.offer(1, 0)
	<-entered
	g.offer(1, 2)
	if head, _, err := g.await(1); err != nil || head != 2 {
		t.Errorf("request %d, %v", head, err)
	}
	g.send(getVringBase, u32s(1, 0))
	g.answer(getVringBase)
	close(stuck)
	_ = g.conn.Close()
	<-g.ended
	if got := g.ram.get(atData+0x100, 1); got[0] != 0 {
		t.Error("an answer was written into the memory of a queue that had stopped")
	}
}

// What a guest can write into its queues ends the device with a reason, and reaches no
// memory but its own: see ram.part.
func TestHostileGuest(t *testing.T) {
	const data = ramGuest + atData
	for name, c := range map[string]struct {
		entries map[uint16]entry
		head    uint16
		index   uint16 // of the available ring, if not 0
		want    string
	}{
		"no such descriptor":     {head: 16, want: "no descriptor 16"},
		"circle":                 {entries: map[uint16]entry{0: {data, 1, flagNext, 1}, 1: {data, 1, flagNext, 0}}, want: "without an end"},
		"next beyond":            {entries: map[uint16]entry{0: {data, 1, flagNext, 99}}, want: "no descriptor 99"},
		"below the RAM":          {entries: map[uint16]entry{0: {ramGuest - 1, 2, 0, 0}}, want: "not in the guest's memory"},
		"across the RAM's end":   {entries: map[uint16]entry{0: {ramGuest + ramSize - 1, 2, 0, 0}}, want: "not in the guest's memory"},
		"wraps":                  {entries: map[uint16]entry{0: {^uint64(0), 2, 0, 0}}, want: "not in the guest's memory"},
		"the vmm's address":      {entries: map[uint16]entry{0: {ramUser, 2, 0, 0}}, want: "not in the guest's memory"},
		"huge":                   {entries: map[uint16]entry{0: {data, 0xffffffff, flagWrite, 0}}, want: "not in the guest's memory"},
		"read behind write":      {entries: map[uint16]entry{0: {data, 1, flagNext | flagWrite, 1}, 1: {data, 1, 0, 0}}, want: "behind what is to be written"},
		"table in a chain":       {entries: map[uint16]entry{0: {data, 1, flagNext, 1}, 1: {data, 16, flagIndirect, 0}}, want: "a table in a chain"},
		"table and next":         {entries: map[uint16]entry{0: {data, 16, flagIndirect | flagNext, 1}}, want: "a table of 16 bytes"},
		"table of half an entry": {entries: map[uint16]entry{0: {data, 24, flagIndirect, 0}}, want: "a table of 24 bytes"},
		"empty table":            {entries: map[uint16]entry{0: {data, 0, flagIndirect, 0}}, want: "a table of 0 bytes"},
		"endless table":          {entries: map[uint16]entry{0: {data, 0x100000, flagIndirect, 0}}, want: "a table of 1048576 bytes"},
		"table elsewhere":        {entries: map[uint16]entry{0: {16, 16, flagIndirect, 0}}, want: "not in the guest's memory"},
		"too many requests":      {index: 17, want: "17 requests of 16"},
		"backwards":              {index: 0xffff, want: "65535 requests of 16"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, echo)
			g.handshake()
			g.describe(1, c.entries)
			if c.index != 0 {
				g.next[1] = c.index - 1
			}
			g.offer(1, c.head)
			if _, _, err := g.await(1); err == nil {
				t.Error("it was answered")
			}
			<-g.ended
			if g.err == nil || !strings.Contains(g.err.Error(), c.want) {
				t.Errorf("%v, want %q", g.err, c.want)
			}
		})
	}
}

// More than a request may have is refused before anything is read.
func TestRequestIsBounded(t *testing.T) {
	w := &worker{}
	all := regions{{guest: 0, size: 1 << 30, user: ramUser}}
	for i := range 1 << 10 {
		if err := w.req.add(all, uint64(i)<<20, 4096, false); err != nil {
			if w.req.inBytes > maxBytes {
				t.Errorf("%d bytes", w.req.inBytes)
			}
			return
		}
	}
	t.Error("4 MiB in one request")
}

// Messages that a vmm would not send end the device with a reason.
func TestHostileVMM(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(g *guest)
		want string
	}{
		"unknown":              {func(g *guest) { g.send(99, nil) }, "was not offered"},
		"log":                  {func(g *guest) { g.send(6, u64s(1, 2)) }, "was not offered"},
		"features":             {func(g *guest) { g.send(setFeatures, u64s(1<<29)) }, "were not offered"},
		"protocol features":    {func(g *guest) { g.send(setProtocolFeatures, u64s(1<<12)) }, "were not offered"},
		"long":                 {func(g *guest) { g.send(setOwner, make([]byte, maxPayload+1)) }, "none of the protocol's"},
		"no queue":             {func(g *guest) { g.send(setVringNum, u32s(maxQueues, 16)) }, "no queue 2"},
		"no queue by number":   {func(g *guest) { g.send(getVringBase, u32s(0xffffffff, 0)) }, "no queue"},
		"odd size":             {func(g *guest) { g.send(setVringNum, u32s(0, 17)) }, "17 entries"},
		"large size":           {func(g *guest) { g.send(setVringNum, u32s(0, 2048)) }, "2048 entries"},
		"no size":              {func(g *guest) { g.send(setVringNum, u32s(0, 0)) }, "0 entries"},
		"kick without a file":  {func(g *guest) { g.send(setVringKick, u64s(0)) }, "0 descriptors"},
		"polled":               {func(g *guest) { g.send(setVringKick, u64s(1<<8)) }, "polled"},
		"moved in use":         {func(g *guest) { g.handshake(); g.send(setVringAddr, append(u32s(1, 0), u64s(0, 0, 0, 0)...)) }, "while it is in use"},
		"memory without files": {func(g *guest) { g.send(setMemTable, append(u32s(1, 0), u64s(0, 1, 0, 0)...)) }, "0 descriptors"},
		"endless memory":       {func(g *guest) { g.table(ramUser, 0, ^uint64(0)) }, "cannot be"},
		"memory that wraps":    {func(g *guest) { g.table(ramUser, ^uint64(0), 2) }, "cannot be"},
		"memory of the kernel": {func(g *guest) { g.table(1<<63, 0, 4096) }, "cannot be"},
		"no memory":            {func(g *guest) { g.table(ramUser, 0, 0) }, "cannot be"},
		"memory goes":          {func(g *guest) { g.handshake(); g.table(ramUser, ramGuest, 4096) }, "not in the guest's memory"},
		"rings elsewhere": {func(g *guest) {
			g.table(ramUser, ramGuest, ramSize)
			g.send(setFeatures, u64s(featureProtocolFeatures))
			g.send(setVringNum, u32s(0, 16))
			g.send(setVringAddr, append(u32s(0, 0), u64s(ramUser+ramSize-16, ramUser, ramUser, 0)...))
			g.send(setVringKick, u64s(0), g.eventfd())
			g.send(setVringEnable, u32s(0, 1))
		}, "descriptors at 0x7f00000ffff0 are not"},
		"event that ends": {func(g *guest) {
			g.handshake()
			fds := make([]int, 2)
			if err := unix.Pipe2(fds, unix.O_CLOEXEC); err != nil {
				g.t.Fatal(err)
			}
			g.send(setVringKick, u64s(1), fds[0])
			_ = unix.Close(fds[0])
			_ = unix.Close(fds[1])
		}, "closed the queue's event"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, echo)
			c.do(g)
			select {
			case <-g.ended:
			case <-time.After(time.Minute):
				t.Fatal("it serves on")
			}
			if g.err == nil || !strings.Contains(g.err.Error(), c.want) {
				t.Errorf("%v, want %q", g.err, c.want)
			}
		})
	}
}

// A vmm that closes the connection has ended, and no error.
func TestEnd(t *testing.T) {
	g := newGuest(t, echo)
	g.handshake()
	_ = g.conn.Close()
	<-g.ended
	if g.err != nil {
		t.Error(g.err)
	}
}

// Before the memory is there nothing starts.
func TestNoMemory(t *testing.T) {
	g := newGuest(t, echo)
	g.device.memory.Store(nil)
	g.handshake()
	<-g.ended
	if g.err == nil || !strings.Contains(g.err.Error(), "before its memory") {
		t.Error(g.err)
	}
}

// FuzzQueue lets a guest write anything where its queues are.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{}, uint16(1), uint64(1))
	f.Add(append(entry{ramGuest + atData, 8, flagNext, 1}.bytes(), entry{ramGuest + atData, 8, flagWrite, 0}.bytes()...), uint16(3), uint64(2))
	f.Add(entry{ramGuest + 0x100, 160, flagIndirect, 0}.bytes(), uint16(16), uint64(3))
	f.Fuzz(func(t *testing.T, descriptors []byte, index uint16, seed uint64) {
		g := newGuest(t, func(request, reply []byte) int {
			if len(request) > maxBytes || len(reply) > maxBytes {
				t.Errorf("%d and %d bytes", len(request), len(reply))
			}
			return copy(reply, request)
		})
		g.handshake()
		random := rand.New(rand.NewPCG(seed, 0))
		ring := make([]byte, 2*g.size)
		for i := range ring {
			ring[i] = byte(random.Uint32()) & 0x1f >> (i & 1 * 8)
		}
		g.ram.put(queueRoom, descriptors[:min(len(descriptors), descriptorSize*int(g.size))])
		g.ram.put(0x100, descriptors)
		g.ram.put(queueRoom+atAvailable+ringHead, ring)
		g.ram.put(queueRoom+atAvailable+ringIndex, order.AppendUint16(nil, index))
		_, _ = unix.Write(g.kick[1], u64s(1))
		g.send(getVringBase, u32s(1, 0))
		_ = g.conn.SetReadDeadline(time.Now().Add(time.Minute))
		_, _ = g.conn.Read(make([]byte, 64))
		_ = g.conn.Close()
		<-g.ended
	})
}

// FuzzMessages sends any bytes as a vmm.
func FuzzMessages(f *testing.F) {
	message := func(request uint32, payload []byte) []byte {
		return append(u32s(request, flagVersion, uint32(len(payload))), payload...)
	}
	f.Add(message(getFeatures, nil))
	f.Add(append(message(setFeatures, u64s(offered)), message(setVringNum, u32s(1, 16))...))
	f.Add(message(setMemTable, append(u32s(1, 0), u64s(0, 4096, ramUser, 0)...)))
	f.Add(append(message(setVringAddr, append(u32s(1, 0), u64s(ramUser, ramUser, ramUser, 0)...)), message(setVringEnable, u32s(1, 1))...))
	f.Fuzz(func(t *testing.T, sent []byte) {
		g := newGuest(t, echo)
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			b := make([]byte, 4096)
			for {
				if _, err := g.conn.Read(b); err != nil {
					return
				}
			}
		}()
		_ = g.conn.SetWriteDeadline(time.Now().Add(time.Minute))
		_, _ = g.conn.Write(sent)
		_ = g.conn.CloseWrite()
		<-g.ended
		_ = g.conn.Close()
		<-drained
	})
}
