package client

import (
	"bytes"
	"errors"
	"strings"
)

func wrongFIDs(s *session, _ target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	open, err := s.make(p.vol, "opened")
	if err != nil {
		return err
	}
	// Whatever the server answers, the attack goes on. There are enough bytes for the longest
	// request.
	s.impatient()
	defer s.patient()
	for _, fid := range []uint32{open, noFID, 1 << 31, 0xdead} {
		for kind := range 256 {
			if kind == tversion {
				continue
			}
			_, err := s.raw(uint8(kind), message(uint8(kind), 1, fid, fid, uint32(1), "name", make([]byte, 80)))
			if errors.Is(err, ErrSilent) || errors.Is(err, ErrBroken) {
				if err := s.start(); err != nil {
					return err
				}
			}
		}
	}
	s.patient()
	if p, err = s.place(); err != nil {
		return err
	}
	if open, err = s.make(p.vol, "opened"); err != nil {
		return err
	}
	other, err := s.walk(p.vol)
	if err != nil {
		return err
	}
	if _, err := s.call(twalk, p.vol, other, []string{}); err == nil {
		return errors.New("a walk to a fid in use")
	}
	if _, err := s.call(tlopen, open, uint32(0)); err == nil {
		return errors.New("an open fid was opened again")
	}
	if _, err := s.call(tread, other, uint64(0), uint32(1)); err == nil {
		return errors.New("read of a fid that is not open")
	}
	_, _ = s.call(twalk, open, s.fid(), []string{})
	_, _ = s.call(treaddir, open, uint64(1<<63), uint32(1000))
	_, _ = s.call(tflush, uint16(1))
	_, _ = s.call(tversion, uint32(4096), "9P2000.u")
	if err := s.start(); err != nil {
		return err
	}
	// Reads a directory at offsets that the server never returned.
	if p, err = s.place(); err != nil {
		return err
	}
	dir, err := s.walk(p.rootfs, "bin")
	if err != nil {
		return err
	}
	if _, err := s.call(tlopen, dir, uint32(0)); err != nil {
		return err
	}
	for _, offset := range []uint64{1, 7, 1 << 31, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		_, _ = s.call(treaddir, dir, offset, uint32(1000))
	}
	s.remove(p.vol, "opened")
	return nil
}

func sizes(s *session, _ target) error {
	s.impatient()
	defer s.patient()
	for _, size := range []uint32{0, 1, 23, 4096, 1 << 20, 1 << 31, 1<<32 - 1} {
		if err := s.d.Reset(); err != nil {
			return err
		}
		if _, err := s.send(tversion, noTag, size, "9P2000.L"); err != nil {
			continue
		}
		if _, err := s.send(tattach, 1, uint32(rootFID), uint32(noFID), "root", "", uint32(0)); err != nil {
			continue
		}
		s.fids = rootFID
		fid, err := s.bind("vol")
		if err != nil {
			continue
		}
		file, err := s.make(fid, "sized")
		if err != nil {
			continue
		}
		for _, count := range []uint32{0, 1, 4096, msize, 1 << 20, 1 << 31, 1<<32 - 1} {
			for _, offset := range []uint64{0, 1 << 32, 1<<63 - 1, 1<<64 - 1} {
				for _, kind := range []uint8{tread, treaddir} {
					if err := s.goOn(s.call(kind, file, offset, count)); err != nil {
						return err
					}
				}
				// Offsets beyond the end of the file, and as much data as there is room for.
				for _, data := range [][]byte{[]byte("hurt"), bytes.Repeat([]byte{'x'}, maxOut-64)} {
					if offset == 0 || offset > 1<<62 {
						if err := s.goOn(s.call(twrite, file, offset, count, data)); err != nil {
							return err
						}
					}
				}
			}
		}
		s.clunk(file)
		s.remove(fid, "sized")
	}
	return nil
}

func (s *session) impatient() { s.d.patience = impatient }

func (s *session) patient() { s.d.patience = patient }

// goOn resets the device if it is broken, and returns other errors.
func (s *session) goOn(_ []byte, err error) error {
	if errors.Is(err, ErrBroken) || errors.Is(err, ErrSilent) {
		return s.start()
	}
	return nil
}

func attributes(s *session, _ target) error {
	s.impatient()
	defer s.patient()
	p, err := s.place()
	if err != nil {
		return err
	}
	if fid, err := s.make(p.vol, "attributed"); err == nil {
		s.clunk(fid)
	}
	tried := 0
	for _, size := range []uint64{0, 1, 65536, 65537, 1 << 31, 1 << 32, 1<<63 - 1, 1<<64 - 1} {
		for _, name := range []string{"", "user.x", "user." + strings.Repeat("n", 300), "system.posix_acl_access", "../x", "/x"} {
			err := attribute(s, p.vol, name, size)
			if errors.Is(err, ErrSilent) || errors.Is(err, ErrBroken) {
				p, err = s.place() // the device has stopped
			} else if err == nil {
				tried++
			}
			if err != nil {
				return err
			}
		}
	}
	if tried == 0 {
		return errors.New("the device broke each time")
	}
	s.remove(p.vol, "attributed")
	return nil
}

// attribute sets an attribute, completely or in part, and reads it at offsets where it has no
// content.
func attribute(s *session, dir uint32, name string, size uint64) error {
	fid, err := s.walk(dir, "attributed")
	if err != nil {
		return err
	}
	if _, err := s.call(txattrcreate, fid, name, size, uint32(0)); err == nil {
		for _, offset := range []uint64{0, size, 1<<64 - 2} {
			_, _ = s.call(twrite, fid, offset, uint32(4), []byte("hurt"))
		}
		_, _ = s.call(tread, fid, uint64(0), uint32(1000))
	}
	s.clunk(fid)
	x := s.fid()
	if fid, err = s.walk(dir, "attributed"); err != nil {
		return err
	}
	if _, err := s.call(txattrwalk, fid, x, name); err == nil {
		for _, offset := range []uint64{0, 1, size, 1<<64 - 1} {
			_, _ = s.call(tread, x, offset, uint32(1000))
		}
	}
	s.clunk(x, fid)
	_, err = s.qid(rootFID)
	return err
}

func locks(s *session, _ target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	file, err := s.make(p.vol, "locked")
	if err != nil {
		return err
	}
	const many = 500
	for i := range uint64(many) {
		kind := uint8(i % 3)
		if _, err := s.call(tlock, file, kind, uint32(i%2), i, uint64(1), uint32(i), strings.Repeat("c", int(i%200))); errors.Is(err, ErrSilent) {
			return err
		}
		if _, err := s.call(tgetlock, file, kind, 1<<64-1-i, i, uint32(i), "c"); errors.Is(err, ErrSilent) {
			return err
		}
	}
	s.clunk(file)
	s.remove(p.vol, "locked")
	return nil
}

// framing sends bytes that are no message.
func framing(s *session, _ target) error {
	s.impatient()
	defer s.patient()
	if _, err := s.place(); err != nil {
		return err
	}
	whole := message(twalk, 1, uint32(rootFID), uint32(77), []string{"rootfs", "bin"})
	for length := range len(whole) + 1 {
		if err := s.goOn(s.raw(twalk, whole[:length])); err != nil {
			return err
		}
	}
	for _, size := range []uint32{0, 1, 6, 7, 8, uint32(len(whole)) - 1, uint32(len(whole)) + 1, msize, msize + 1, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
		lies := bytes.Clone(whole)
		lies[0], lies[1], lies[2], lies[3] = byte(size), byte(size>>8), byte(size>>16), byte(size>>24)
		if err := s.goOn(s.raw(twalk, lies)); err != nil {
			return err
		}
	}
	// Longer than the agreed size.
	long := message(twalk, 1, uint32(rootFID), uint32(78), bytes.Repeat([]byte{0xff}, maxOut-64))
	if err := s.goOn(s.raw(twalk, long)); err != nil {
		return err
	}
	// No room, or too little, for the reply.
	for _, room := range []int{0, 1, 6, 7, 10, 11} {
		for _, request := range [][]byte{whole, message(tread, 1, uint32(rootFID), uint64(0), uint32(1000)), message(tstatfs, 1, uint32(rootFID))} {
			if err := s.goOn(first(s.d.Exchange(room, request))); err != nil {
				return err
			}
		}
	}
	return s.start()
}

func first(replies [][]byte, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return replies[0], nil
}

// rings offers chains that lead in a circle, nowhere, beyond memory and to registers.
func rings(s *session, _ target) error {
	at := s.d.lanes[0].out[0].physical
	whole := message(tversion, noTag, uint32(msize), "9P2000.L")
	for _, chain := range [][]descriptor{
		{{at, 21, descNext, 0}},
		{{at, 21, descNext, 1}, {at, 21, descNext | descWrite, 0}},
		{{at, 21, descNext, 60000}},
		{{1 << 50, 21, descNext, 1}, {at, 100, descWrite, 0}},
		{{0xfeb00000, 4096, descNext, 1}, {0xfeb00000, 4096, descWrite, 0}},
		{{at, 21, descNext, 1}, {0, 4096, descWrite, 0}},
		{{at, 1<<32 - 1, descNext, 1}, {at, 1<<32 - 1, descWrite, 0}},
		{{at, 100, descWrite | descNext, 1}, {at, 21, 0, 0}},
		{{at, 0, descNext, 1}, {at, 0, descWrite, 0}},
		{{at, 21, 0, 0}},
		{{at, 100, descWrite, 0}},
		{{at, 64, 4, 0}}, // indirect descriptors, which were not agreed on
	} {
		if err := s.d.Reset(); err != nil {
			return err
		}
		copy(s.d.lanes[0].out[0].bytes, whole)
		if _, err := s.d.Raw(chain); err != nil && !errors.Is(err, ErrBroken) {
			return err
		}
	}
	return s.start()
}
