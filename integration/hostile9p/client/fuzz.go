package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
)

// fuzzer makes valid requests and damages some of them.
type fuzzer struct {
	*rand.Rand
	t     target
	fids  []uint32
	names []string
}

// fuzz sends requests made from a seed for this many seconds.
func fuzz(s *session, t target) error {
	f := &fuzzer{Rand: rand.New(rand.NewPCG(t.Seed, 9)), t: t}
	f.names = append([]string{"a", "b", "c", "d", "file", "secret", "link", "swap", "", ".", t.Outside, "hurt"}, ups...)
	s.impatient()
	defer s.patient()
	sent, broken, answered := 0, 0, 0
	for end := after(t.Seconds); !end(); {
		p, err := s.place()
		if err != nil {
			return fmt.Errorf("after %d messages: %w", sent, err)
		}
		f.fids = []uint32{rootFID, p.rootfs, p.vol, p.ro, p.file, noFID}
		for i := range uint32(12) {
			f.fids = append(f.fids, 1000+i)
		}
		const perSession = 400
		for range perSession {
			requests := make([][]byte, 1+f.IntN(lanes))
			for i := range requests {
				requests[i] = f.message(uint16(i))
			}
			room := maxIn
			if f.IntN(50) == 0 {
				room = f.IntN(64)
			}
			replies, err := s.d.Exchange(room, requests...)
			sent += len(requests)
			if err != nil {
				broken++
				if !errors.Is(err, ErrBroken) && !errors.Is(err, ErrSilent) {
					return err
				}
				break
			}
			for i, r := range replies {
				if len(r) > 4 && r[4] != rlerror {
					answered++
				}
				kind := uint8(0)
				if len(requests[i]) > 4 {
					kind = requests[i][4]
				}
				s.look(kind, r)
			}
		}
	}
	s.say("seed %d: %d messages, %d not refused, %d times broken", t.Seed, sent, answered, broken)
	if answered == 0 {
		return errors.New("every message was refused")
	}
	p, err := s.place()
	if err != nil {
		return err
	}
	s.remove(p.vol, f.names...)
	return nil
}

func (f *fuzzer) fid() uint32 { return f.fids[f.IntN(len(f.fids))] }

func (f *fuzzer) name() string { return f.names[f.IntN(len(f.names))] }

func (f *fuzzer) path() []string {
	names := make([]string, f.IntN(5))
	for i := range names {
		names[i] = f.name()
	}
	return names
}

func (f *fuzzer) small() uint32 {
	if f.IntN(20) == 0 {
		return f.Uint32()
	}
	return uint32(f.IntN(5000))
}

func (f *fuzzer) offset() uint64 {
	if f.IntN(20) == 0 {
		return f.Uint64()
	}
	return uint64(f.IntN(1 << 16)) // files stay small
}

func (f *fuzzer) flags() uint32 { return f.Uint32() & 0o7777777 &^ 0o40000 } // no O_DIRECT

func (f *fuzzer) mode() uint32 { return f.Uint32() & 0o177777 }

func (f *fuzzer) message(tag uint16) []byte {
	m := f.wellFormed(tag)
	switch f.IntN(500) {
	// These may break the device, and then the reply takes long.
	case 0:
		return m[:f.IntN(len(m)+1)]
	case 1:
		binary.LittleEndian.PutUint32(m, f.Uint32())
		return m
	}
	if f.IntN(4) == 0 {
		for range 1 + f.IntN(8) {
			m[headSize+f.IntN(len(m)-headSize)] ^= 1 << f.IntN(8)
		}
	}
	// Lengths of strings may be wrong, so there are enough bytes after them.
	const behind = 1024
	m = append(m, make([]byte, behind)...)
	binary.LittleEndian.PutUint32(m, uint32(len(m)))
	return m
}

func (f *fuzzer) wellFormed(tag uint16) []byte {
	kinds := []func() []byte{
		func() []byte { return message(twalk, tag, f.fid(), f.fid(), f.path()) },
		func() []byte { return message(twalk, tag, f.fid(), f.fid(), []string{f.name()}) },
		func() []byte { return message(tlopen, tag, f.fid(), f.flags()) },
		func() []byte { return message(tlcreate, tag, f.fid(), f.name(), f.flags(), f.mode(), f.small()) },
		func() []byte { return message(tsymlink, tag, f.fid(), f.name(), f.name(), f.small()) },
		func() []byte {
			return message(tmknod, tag, f.fid(), f.name(), 0o10000|f.mode()&0o777, uint32(0), uint32(0), f.small())
		},
		func() []byte { return message(trename, tag, f.fid(), f.fid(), f.name()) },
		func() []byte { return message(treadlink, tag, f.fid()) },
		func() []byte { return message(tgetattr, tag, f.fid(), f.Uint64()) },
		func() []byte {
			return message(tsetattr, tag, f.fid(), f.Uint32()&0x1ff, f.mode(), f.small(), f.small(), f.offset(), f.offset(), f.offset(), f.offset(), f.offset())
		},
		func() []byte { return message(txattrwalk, tag, f.fid(), f.fid(), f.name()) },
		func() []byte { return message(txattrcreate, tag, f.fid(), "user."+f.name(), f.offset(), f.small()%4) },
		func() []byte { return message(treaddir, tag, f.fid(), f.offset(), f.small()) },
		func() []byte { return message(tfsync, tag, f.fid(), f.small()) },
		func() []byte {
			return message(tlock, tag, f.fid(), uint8(f.IntN(4)), f.small(), f.offset(), f.offset(), f.small(), f.name())
		},
		func() []byte {
			return message(tgetlock, tag, f.fid(), uint8(f.IntN(4)), f.offset(), f.offset(), f.small(), f.name())
		},
		func() []byte { return message(tlink, tag, f.fid(), f.fid(), f.name()) },
		func() []byte { return message(tmkdir, tag, f.fid(), f.name(), f.mode(), f.small()) },
		func() []byte { return message(trenameat, tag, f.fid(), f.name(), f.fid(), f.name()) },
		func() []byte { return message(tunlinkat, tag, f.fid(), f.name(), uint32(f.IntN(2)*0x200)) },
		func() []byte { return message(tread, tag, f.fid(), f.offset(), f.small()) },
		func() []byte { return message(twrite, tag, f.fid(), f.offset(), uint32(4), []byte("hurt")) },
		func() []byte { return message(tclunk, tag, f.fid()) },
		func() []byte { return message(tremove, tag, f.fid()) },
		func() []byte { return message(tflush, tag, uint16(f.IntN(lanes))) },
		func() []byte { return message(tstatfs, tag, f.fid()) },
		func() []byte { return message(tattach, tag, f.fid(), uint32(noFID), "root", f.name(), f.small()) },
		func() []byte { return message(uint8(f.Uint32()), tag, f.fid(), f.name(), f.Uint64()) },
	}
	return kinds[f.IntN(len(kinds))]()
}
