package client

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// session is one connection to the server.
type session struct {
	d    *Device
	out  io.Writer
	fids uint32
	// uid and gid are the ids with which files are made.
	uid, gid uint32
	leaked   int // replies with content that no guest may see
}

// marker is in the content and the names of what the test keeps beside the share. It is put
// together here, so that only the host's files contain it.
var marker = []byte("HUSK-" + "CANARY")

const (
	rootFID = 0
	msize   = maxIn

	openWRONLY = 1
	openRDWR   = 2
	openTRUNC  = 0o1000
)

func (s *session) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// start begins a new session in which only the root is open.
func (s *session) start() error {
	if err := s.d.Reset(); err != nil {
		return err
	}
	patience := s.d.patience
	s.d.patience = patient
	defer func() { s.d.patience = patience }()
	s.fids = rootFID
	if _, err := s.send(tversion, noTag, uint32(msize), "9P2000.L"); err != nil {
		return fmt.Errorf("version: %w", err)
	}
	if _, err := s.send(tattach, 1, uint32(rootFID), uint32(noFID), "root", "", s.uid); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

func (s *session) fid() uint32 {
	s.fids++
	return s.fids
}

func (s *session) send(kind uint8, tag uint16, fields ...any) ([]byte, error) {
	reply, err := s.raw(kind, message(kind, tag, fields...))
	if err != nil {
		return nil, err
	}
	return body(kind, reply)
}

// call is send with the usual tag.
func (s *session) call(kind uint8, fields ...any) ([]byte, error) { return s.send(kind, 1, fields...) }

func (s *session) raw(kind uint8, request []byte) ([]byte, error) {
	replies, err := s.d.Exchange(maxIn, request)
	if err != nil {
		return nil, err
	}
	s.look(kind, replies[0])
	return replies[0], nil
}

// look counts replies with content that the guest must not see. The target of a symbolic link
// may be the guest's own text.
func (s *session) look(kind uint8, reply []byte) {
	if kind != treadlink && bytes.Contains(reply, marker) {
		s.leaked++
		s.say("LEAK: the answer to request %d has what is outside: %.200q", kind, reply)
	}
}

// walk returns a new fid.
func (s *session) walk(from uint32, names ...string) (uint32, error) {
	fid := s.fid()
	b, err := s.call(twalk, from, fid, names)
	if err != nil {
		return 0, err
	}
	if n := int(binary.LittleEndian.Uint16(b)); n != len(names) {
		return 0, enoent
	}
	return fid, nil
}

func (s *session) clunk(fids ...uint32) {
	for _, fid := range fids {
		_, _ = s.call(tclunk, fid)
	}
}

func (s *session) qid(fid uint32) (q qid, err error) {
	const basic = 0x7ff
	b, err := s.call(tgetattr, fid, uint64(basic))
	if err != nil {
		return q, err
	}
	if len(b) < 8+len(q) {
		return q, fmt.Errorf("attributes of %d bytes", len(b))
	}
	copy(q[:], b[8:])
	return q, nil
}

// list returns the names in a directory, "." and ".." among them.
func (s *session) list(dir uint32) ([]string, error) {
	fid, err := s.walk(dir)
	if err != nil {
		return nil, err
	}
	defer s.clunk(fid)
	if _, err := s.call(tlopen, fid, uint32(0)); err != nil {
		return nil, err
	}
	b, err := s.call(treaddir, fid, uint64(0), uint32(msize-24))
	if err != nil {
		return nil, err
	}
	var names []string
	const fixed = 13 + 8 + 1 + 2
	for b = b[4:]; len(b) >= fixed; {
		n := int(binary.LittleEndian.Uint16(b[fixed-2:]))
		if len(b) < fixed+n {
			break
		}
		names = append(names, string(b[fixed:fixed+n]))
		b = b[fixed+n:]
	}
	return names, nil
}

// bind returns the fid of what the test has bound under this name.
func (s *session) bind(name string) (uint32, error) {
	mounts, err := s.walk(rootFID, "mounts")
	if err != nil {
		return 0, err
	}
	defer s.clunk(mounts)
	names, err := s.list(mounts)
	if err != nil {
		return 0, err
	}
	for _, n := range names {
		if _, err := strconv.Atoi(n); err != nil {
			continue
		}
		if fid, err := s.walk(mounts, n, name); err == nil {
			return fid, nil
		}
	}
	return 0, fmt.Errorf("no bind %q among %q", name, names)
}

// place has the fids of the places that the test has set up.
type place struct{ rootfs, vol, ro, file uint32 }

func (s *session) place() (p place, err error) {
	if err := s.start(); err != nil {
		return p, err
	}
	var errs [4]error
	p.rootfs, errs[0] = s.walk(rootFID, "rootfs")
	p.vol, errs[1] = s.bind("vol")
	p.ro, errs[2] = s.bind("ro")
	p.file, errs[3] = s.bind("onefile")
	return p, errors.Join(errs[:]...)
}

// make makes a file and opens it.
func (s *session) make(dir uint32, name string) (uint32, error) {
	fid, err := s.walk(dir)
	if err != nil {
		return 0, err
	}
	_, err = s.call(tlcreate, fid, name, uint32(openRDWR), uint32(0o644), s.gid)
	return fid, err
}

func (s *session) remove(dir uint32, names ...string) {
	const removeDir = 0x200
	for _, name := range names {
		if _, err := s.call(tunlinkat, dir, name, uint32(0)); err != nil {
			_, _ = s.call(tunlinkat, dir, name, uint32(removeDir))
		}
	}
}

// reads sends every request that returns something about a fid, or changes it, as for one that
// leads outside.
func (s *session) reads(fid uint32) {
	_, _ = s.call(tgetattr, fid, uint64(0x7ff))
	_, _ = s.call(treadlink, fid)
	_, _ = s.list(fid)
	for _, flags := range []uint32{0, openRDWR, openWRONLY | openTRUNC} {
		open, err := s.walk(fid)
		if err != nil {
			continue
		}
		if _, err := s.call(tlopen, open, flags); err == nil {
			_, _ = s.call(tread, open, uint64(0), uint32(1024))
			if flags != 0 {
				_, _ = s.call(twrite, open, uint64(0), uint32(4), []byte("hurt"))
			}
		}
		s.clunk(open)
	}
}

// changes sends every request that changes a file, and the content if it is a directory. It
// returns those that succeeded.
func (s *session) changes(fid uint32) []string {
	var done []string
	try := func(what string, kind uint8, fields ...any) {
		if _, err := s.call(kind, fields...); err == nil {
			done = append(done, what)
		}
	}
	attr := func(valid uint32, mode uint32, id uint32, size uint64) []any {
		return []any{fid, valid, mode, id, id, size, uint64(0), uint64(0), uint64(0), uint64(0)}
	}
	try("chmod", tsetattr, attr(setMode, 0o6777, 0, 0)...)
	try("chown", tsetattr, attr(setUID|setGID, 0, 1234, 0)...)
	try("truncate", tsetattr, attr(setSize, 0, 0, 0)...)
	try("set times", tsetattr, attr(setATime|setMTime|setATimeTo|setMTimeTo, 0, 0, 0)...)
	try("touch", tsetattr, attr(setATime|setMTime, 0, 0, 0)...)
	for _, name := range []string{"user.hurt", "security.capability", "trusted.overlay.opaque", "system.posix_acl_access"} {
		x, err := s.walk(fid)
		if err != nil {
			continue
		}
		if _, err := s.call(txattrcreate, x, name, uint64(1), uint32(0)); err == nil {
			_, _ = s.call(twrite, x, uint64(0), uint32(1), []byte("x"))
			try("set attribute "+name, tclunk, x)
		}
	}
	inside := func(what string, kind uint8, fields ...any) {
		if _, err := s.call(kind, fields...); err == nil {
			done = append(done, what+" in it")
			s.remove(fid, "hurt")
		}
	}
	inside("mkdir", tmkdir, fid, "hurt", uint32(0o777), uint32(0))
	inside("symlink", tsymlink, fid, "hurt", "/", uint32(0))
	inside("fifo", tmknod, fid, "hurt", uint32(0o10666), uint32(0), uint32(0), uint32(0))
	inside("link", tlink, fid, fid, "hurt")
	if made, err := s.make(fid, "hurt"); err == nil {
		done = append(done, "create in it")
		s.clunk(made)
		s.remove(fid, "hurt")
	}
	for _, name := range []string{"file", "secret"} {
		inside("rename", trenameat, fid, name, fid, "hurt")
		inside("unlink", tunlinkat, fid, name, uint32(0))
	}
	return done
}
