package client

import (
	"errors"
	"fmt"
)

// own makes in the volume and in the rootfs what would be worth most on the host: a set-user-ID
// root program, a program with capabilities, files and directories of root and of others, and a
// node of the host's disk. It reports what the server did.
func own(s *session, _ target) error {
	defer func() { s.uid, s.gid = 0, 0 }()
	// As root, and as root of the tests' user namespace.
	for _, who := range [][2]uint32{{0, 0}, {100000, 200000}} {
		s.uid, s.gid = who[0], who[1]
		p, err := s.place()
		if err != nil {
			return err
		}
		for place, dir := range map[string]uint32{"vol": p.vol, "rootfs": p.rootfs} {
			s.ownIn(dir, fmt.Sprintf("%s by %d: ", place, s.uid), fmt.Sprint(".", s.uid))
		}
	}
	if s.leaked > 0 {
		return errors.New("root's file was read")
	}
	return nil
}

// attrs returns the fields of Tsetattr.
func attrs(fid, valid, mode, uid, gid uint32) []any {
	return []any{fid, valid, mode, uid, gid, uint64(0), uint64(0), uint64(0), uint64(0), uint64(0)}
}

func (s *session) ownIn(dir uint32, place, suffix string) {
	fid, err := s.make(dir, "setuid"+suffix)
	s.say("%screate: %v", place, err)
	if err == nil {
		_, err = s.call(twrite, fid, uint64(0), uint32(4), []byte("#!x\n"))
		s.say("%swrite: %v", place, err)
		// Each id that may have more rights than the container; root's files come last.
		for _, id := range []uint32{1000, 65534, 100000, 165536, 1<<32 - 3, 1<<32 - 2, 0} {
			_, err = s.call(tsetattr, attrs(fid, setUID, 0, id, id)...)
			s.say("%schown to %d: %v", place, id, err)
			_, err = s.call(tsetattr, attrs(fid, setGID, 0, id, id)...)
			s.say("%schgrp to %d: %v", place, id, err)
			_, err = s.call(tsetattr, attrs(fid, setMode, 0o6755, 0, 0)...)
			s.say("%schmod: %v", place, err)
		}
		s.clunk(fid)
	}
	for name, node := range map[string][3]uint32{"disk": {0o60666, 8, 0}, "mem": {0o20666, 1, 1}, "kvm": {0o20666, 10, 232}} {
		_, err := s.call(tmknod, dir, name+suffix, node[0], node[1], node[2], s.gid)
		s.say("%smknod %s: %v", place, name, err)
	}
	s.say("%sfile capability: %v", place, s.setCapability(dir, "capable"+suffix))
	_, err = s.call(tmkdir, dir, "directory"+suffix, uint32(0o6777), s.gid)
	s.say("%smkdir: %v", place, err)
	// Files of root that exist already.
	for _, name := range []string{"roots", "shut"} {
		if fid, err := s.walk(dir, name); err == nil {
			s.reads(fid)
			s.say("%sof %s: %v", place, name, s.changes(fid))
		}
	}
}

func (s *session) setCapability(dir uint32, name string) error {
	fid, err := s.make(dir, name)
	if err != nil {
		return err
	}
	s.clunk(fid)
	if fid, err = s.walk(dir, name); err != nil {
		return err
	}
	// VFS_CAP_REVISION_2 with CAP_SYS_ADMIN, effective.
	value := []byte{1, 0, 0, 2, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if _, err = s.call(txattrcreate, fid, "security.capability", uint64(len(value)), uint32(0)); err != nil {
		return err
	}
	if _, err = s.call(twrite, fid, uint64(0), uint32(len(value)), value); err != nil {
		return err
	}
	_, err = s.call(tclunk, fid)
	return err
}
