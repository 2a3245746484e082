package client

import (
	"errors"
	"strings"
	"time"
)

func after(seconds int) func() bool {
	end := time.Now().Add(time.Duration(max(seconds, 1)) * time.Second)
	return func() bool { return time.Now().After(end) }
}

// exhaust takes as many fids, open files and attributes as the server gives.
func exhaust(s *session, t target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	for _, name := range []string{"many"} {
		if fid, err := s.make(p.vol, name); err == nil {
			s.clunk(fid)
		}
	}
	opened, walked, held := 0, 0, 0
	for end := after(t.Seconds); !end(); {
		// As many requests as can be pending at once.
		var walks, opens [][]byte
		for i := range uint16(lanes) {
			fid := s.fid()
			walks = append(walks, message(twalk, i, p.vol, fid, []string{"many"}))
			opens = append(opens, message(tlopen, i, fid, uint32(openRDWR)))
		}
		if _, err := s.d.Exchange(maxIn, walks...); err != nil {
			return err
		}
		walked += lanes
		replies, err := s.d.Exchange(maxIn, opens...)
		if err != nil {
			return err
		}
		for _, r := range replies {
			if _, err := body(tlopen, r); err == nil {
				opened++
			}
		}
		const rarely = 64
		if walked%rarely != 0 {
			continue
		}
		fid, err := s.walk(p.vol, "many")
		if err != nil {
			return err
		}
		const most = 65536 // the server's own limit for an attribute
		if _, err := s.call(txattrcreate, fid, "user.x", uint64(most), uint32(0)); err != nil {
			continue
		}
		held++
		for at := 0; at < most; {
			n := min(most-at, maxOut-64)
			if _, err := s.call(twrite, fid, uint64(at), uint32(n), []byte(strings.Repeat("x", n))); err != nil {
				break
			}
			at += n
		}
	}
	s.say("%d fids, %d opened, %d attributes under way", walked, opened, held)
	// The server still answers.
	if _, err := s.qid(rootFID); err != nil {
		return err
	}
	if err := s.start(); err != nil {
		return err
	}
	if p, err = s.place(); err != nil {
		return err
	}
	s.remove(p.vol, "many")
	if opened == 0 || held == 0 {
		return errors.New("nothing was taken")
	}
	return nil
}
