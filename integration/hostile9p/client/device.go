// Package client sends 9p2000.L messages to the server behind a virtio-9p device over its own
// rings, without the guest's kernel, so it can send what no kernel would. It runs as root in a
// guest.
package client

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Registers of a virtio-mmio device, VIRTIO 1.2, 4.2.2, and of the legacy one, 4.2.4.
const (
	regMagic          = 0x000
	regVersion        = 0x004
	regDeviceID       = 0x008
	regDriverFeatures = 0x020
	regDriverSelect   = 0x024
	regPageSize       = 0x028 // legacy
	regQueueSelect    = 0x030
	regQueueMax       = 0x034
	regQueueSize      = 0x038
	regQueueAlign     = 0x03c // legacy
	regQueuePage      = 0x040 // legacy
	regQueueReady     = 0x044
	regNotify         = 0x050
	regStatus         = 0x070
	regDescLow        = 0x080
	regAvailLow       = 0x090
	regUsedLow        = 0x0a0

	magic     = 0x74726976
	device9P  = 9
	slotBytes = 0x200

	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 64
)

// The queue is in one page: descriptors, then offered chains, then used ones.
const (
	pageBytes   = 4096
	queueSize   = 64
	availOffset = queueSize * 16
	usedOffset  = 2048

	descNext  = 1
	descWrite = 2

	noInterrupt = 1
)

const (
	// lanes bounds the requests that are pending at once.
	lanes = 4
	// outPages and inPages bound the size of a request and of its reply.
	outPages = 12
	inPages  = 4

	maxOut = outPages * pageBytes
	maxIn  = inPages * pageBytes
)

// page is a page of this process that the device can reach.
type page struct {
	bytes    []byte
	physical uint64
}

// Device is the virtio-9p device with the queue.
type Device struct {
	registers []byte
	queue     page
	lanes     [lanes]struct{ out, in []page }
	lastUsed  uint16
	patience  time.Duration
}

// ErrBroken means that the driver did something forbidden: the device stops until it is reset.
var ErrBroken = errors.New("the device is broken")

// ErrSilent means that a request got no reply.
var ErrSilent = errors.New("no reply")

// How long to wait for a reply. A legacy device does not say that it is broken, so after a
// request that may break it the wait is short.
const (
	patient   = 20 * time.Second
	impatient = 700 * time.Millisecond
)

// OpenDevice takes the device with this mount tag away from the guest's kernel.
func OpenDevice(tag string) (*Device, error) {
	address, err := takeDevice(tag)
	if err != nil {
		return nil, err
	}
	mem, err := os.OpenFile("/dev/mem", os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	base := address &^ (pageBytes - 1)
	window, err := unix.Mmap(int(mem.Fd()), int64(base), pageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map registers at %#x: %w", address, err)
	}
	d := &Device{registers: window[address-base : address-base+slotBytes], patience: patient}
	if m, id := d.read(regMagic), d.read(regDeviceID); m != magic || id != device9P {
		return nil, fmt.Errorf("device at %#x: magic %#x, id %d", address, m, id)
	}
	// Pages keep their physical addresses.
	_ = os.WriteFile("/proc/sys/vm/compact_unevictable_allowed", []byte("0"), 0)
	pages, err := lockedPages(1 + lanes*(outPages+inPages))
	if err != nil {
		return nil, err
	}
	d.queue, pages = pages[0], pages[1:]
	for i := range d.lanes {
		d.lanes[i].out, pages = pages[:outPages], pages[outPages:]
		d.lanes[i].in, pages = pages[:inPages], pages[inPages:]
	}
	return d, d.Reset()
}

// takeDevice returns the address of the registers when no driver uses them.
func takeDevice(tag string) (uint64, error) {
	tags, err := filepath.Glob("/sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag")
	if err != nil {
		return 0, err
	}
	for _, path := range tags {
		text, err := os.ReadFile(path)
		if err != nil || string(bytes.TrimRight(text, "\x00\n")) != tag {
			continue
		}
		parent, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return 0, err
		}
		name := filepath.Base(filepath.Dir(parent)) // of the platform device
		address, err := addressOf(name)
		if err != nil {
			return 0, err
		}
		if err := os.WriteFile("/sys/bus/platform/drivers/virtio-mmio/unbind", []byte(name), 0); err != nil {
			return 0, fmt.Errorf("take %s from its driver: %w", name, err)
		}
		return address, nil
	}
	return 0, fmt.Errorf("no 9p device with mount tag %q among %q", tag, tags)
}

func addressOf(name string) (uint64, error) {
	text, err := os.ReadFile("/proc/iomem")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		where, who, _ := strings.Cut(strings.TrimSpace(line), " : ")
		if first, _, _ := strings.Cut(where, "-"); strings.HasPrefix(who, name) {
			return strconv.ParseUint(first, 16, 64)
		}
	}
	return 0, fmt.Errorf("%s is not in /proc/iomem:\n%s", name, text)
}

func lockedPages(n int) ([]page, error) {
	all, err := unix.Mmap(-1, 0, n*pageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	if err := unix.Madvise(all, unix.MADV_NOHUGEPAGE); err != nil {
		return nil, err
	}
	for i := 0; i < len(all); i += pageBytes {
		all[i] = 1
	}
	if err := unix.Mlock(all); err != nil {
		return nil, err
	}
	maps, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	var pages []page
	for i := 0; i < len(all); i += pageBytes {
		at := uint64(uintptr(unsafe.Pointer(&all[i])))
		entry := make([]byte, 8)
		if _, err := maps.ReadAt(entry, int64(at/pageBytes*8)); err != nil {
			return nil, err
		}
		const present, frame = 1 << 63, 1<<55 - 1
		e := binary.LittleEndian.Uint64(entry)
		if e&present == 0 || e&frame == 0 {
			return nil, fmt.Errorf("page at %#x: pagemap says %#x", at, e)
		}
		pages = append(pages, page{bytes: all[i : i+pageBytes], physical: e & frame * pageBytes})
	}
	return pages, nil
}

func (d *Device) register(at int) *uint32 { return (*uint32)(unsafe.Pointer(&d.registers[at])) }

func (d *Device) read(at int) uint32 { return atomic.LoadUint32(d.register(at)) }

func (d *Device) write(at int, value uint32) { atomic.StoreUint32(d.register(at), value) }

func (d *Device) writeAddress(low int, address uint64) {
	d.write(low, uint32(address))
	d.write(low+4, uint32(address>>32))
}

// Reset starts the device again: the server forgets what was open.
func (d *Device) Reset() error {
	d.write(regStatus, 0)
	for i := 0; d.read(regStatus) != 0; i++ {
		if i > 100000 {
			return errors.New("the device does not reset")
		}
	}
	clear(d.queue.bytes)
	d.lastUsed = 0
	binary.LittleEndian.PutUint16(d.queue.bytes[availOffset:], noInterrupt)
	d.write(regStatus, statusAcknowledge)
	d.write(regStatus, statusAcknowledge|statusDriver)
	status := uint32(statusAcknowledge | statusDriver)
	legacy := d.read(regVersion) == 1
	if legacy {
		d.write(regPageSize, pageBytes)
		d.write(regDriverFeatures, 0)
	} else {
		const version1 = 1 // bit 32
		d.write(regDriverSelect, 0)
		d.write(regDriverFeatures, 0)
		d.write(regDriverSelect, 1)
		d.write(regDriverFeatures, version1)
		status |= statusFeaturesOK
		d.write(regStatus, status)
	}
	d.write(regQueueSelect, 0)
	if most := d.read(regQueueMax); most < queueSize {
		return fmt.Errorf("the device's queue has %d descriptors", most)
	}
	d.write(regQueueSize, queueSize)
	if legacy {
		d.write(regQueueAlign, usedOffset)
		d.write(regQueuePage, uint32(d.queue.physical/pageBytes))
	} else {
		d.writeAddress(regDescLow, d.queue.physical)
		d.writeAddress(regAvailLow, d.queue.physical+availOffset)
		d.writeAddress(regUsedLow, d.queue.physical+usedOffset)
		d.write(regQueueReady, 1)
	}
	d.write(regStatus, status|statusDriverOK)
	return nil
}

// Exchange sends at most lanes requests at once and returns the replies in their order. room is
// the size of the buffer for each reply, in bytes.
func (d *Device) Exchange(room int, requests ...[]byte) ([][]byte, error) {
	if len(requests) > lanes {
		return nil, fmt.Errorf("%d requests at once", len(requests))
	}
	const perLane = outPages + inPages
	for i, request := range requests {
		descs := d.lane(i, room, request)
		for j, desc := range descs {
			if j+1 < len(descs) {
				desc.flags |= descNext
				desc.next = uint16(i*perLane + j + 1)
			}
			d.setDescriptor(i*perLane+j, desc)
		}
		d.offer(uint16(i * perLane))
	}
	d.write(regNotify, 0)
	lengths, err := d.collect(len(requests))
	if err != nil {
		return nil, err
	}
	replies := make([][]byte, len(requests))
	for i := range requests {
		length := min(int(lengths[uint16(i*perLane)]), maxIn)
		for _, p := range d.lanes[i].in {
			n := min(length-len(replies[i]), pageBytes)
			replies[i] = append(replies[i], p.bytes[:n]...)
		}
	}
	return replies, nil
}

type descriptor struct {
	address     uint64
	length      uint32
	flags, next uint16
}

func (d *Device) lane(i, room int, request []byte) []descriptor {
	var descs []descriptor
	rest := request[:min(len(request), maxOut)]
	for _, p := range d.lanes[i].out {
		n := copy(p.bytes, rest)
		if rest = rest[n:]; n > 0 {
			descs = append(descs, descriptor{address: p.physical, length: uint32(n)})
		}
	}
	room = min(room, maxIn)
	for _, p := range d.lanes[i].in {
		n := min(room, pageBytes)
		if room -= n; n > 0 {
			descs = append(descs, descriptor{address: p.physical, length: uint32(n), flags: descWrite})
		}
	}
	if len(descs) == 0 {
		descs = []descriptor{{address: d.lanes[i].out[0].physical}}
	}
	return descs
}

func (d *Device) setDescriptor(i int, desc descriptor) {
	at := d.queue.bytes[i*16:]
	binary.LittleEndian.PutUint64(at, desc.address)
	binary.LittleEndian.PutUint32(at[8:], desc.length)
	binary.LittleEndian.PutUint16(at[12:], desc.flags)
	binary.LittleEndian.PutUint16(at[14:], desc.next)
}

func (d *Device) offer(head uint16) {
	avail := d.queue.bytes[availOffset:]
	index := binary.LittleEndian.Uint16(avail[2:])
	binary.LittleEndian.PutUint16(avail[4+2*(int(index)%queueSize):], head)
	// The flags beside the index do not change. The atomic store orders the writes before it.
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&avail[0])), noInterrupt|uint32(index+1)<<16)
}

// collect waits for n chains and returns their lengths by head.
func (d *Device) collect(n int) (map[uint16]uint32, error) {
	used := d.queue.bytes[usedOffset:]
	lengths := map[uint16]uint32{}
	deadline := time.Now().Add(d.patience)
	for spins := 0; len(lengths) < n; spins++ {
		index := uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&used[0]))) >> 16)
		if index == d.lastUsed {
			if spins%64 == 63 {
				time.Sleep(20 * time.Microsecond)
				if d.read(regStatus)&statusNeedsReset != 0 {
					return nil, ErrBroken
				}
				if time.Now().After(deadline) {
					return nil, fmt.Errorf("%w: %d of %d", ErrSilent, len(lengths), n)
				}
			}
			continue
		}
		entry := used[4+8*(int(d.lastUsed)%queueSize):]
		lengths[uint16(binary.LittleEndian.Uint32(entry))] = binary.LittleEndian.Uint32(entry[4:])
		d.lastUsed++
	}
	return lengths, nil
}

// Raw offers invalid chains, and returns how many come back within a moment.
func (d *Device) Raw(chains ...[]descriptor) (int, error) {
	next := 0
	for _, chain := range chains {
		for j, desc := range chain {
			d.setDescriptor(next+j, desc)
		}
		d.offer(uint16(next))
		next += len(chain)
	}
	d.write(regNotify, 0)
	deadline := time.Now().Add(300 * time.Millisecond)
	used := d.queue.bytes[usedOffset:]
	for time.Now().Before(deadline) {
		if d.read(regStatus)&statusNeedsReset != 0 {
			return 0, ErrBroken
		}
		time.Sleep(time.Millisecond)
	}
	return int(uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&used[0])))>>16) - d.lastUsed), nil
}
