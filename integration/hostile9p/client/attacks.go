package client

import (
	"errors"
	"fmt"
	"strings"
)

// attack returns an error if the guest got something that it must not get. The test on the host
// finds out what was done to the host's files.
type attack struct {
	name string
	run  func(*session, target) error
}

// target is what the test tells about the host.
type target struct {
	// Outside is the absolute path of a directory of the host beside the shared ones, with a
	// file "secret". Vol is that of the directory shared as "vol".
	Outside, Vol string
	Seconds      int
	Seed         uint64
}

var attacks = []attack{
	{"walk above the root", walkAbove},
	{"names that are paths", pathNames},
	{"attach elsewhere", attachElsewhere},
	{"symbolic links out", linksOut},
	{"races with symbolic links", races},
	{"read-only binds", readOnly},
	{"the sealed root", sealedRoot},
	{"a file's neighbours", neighbours},
	{"hard links and renames across binds", acrossBinds},
	{"device nodes", deviceNodes},
	{"wrong use of fids", wrongFIDs},
	{"sizes and counts", sizes},
	{"extended attributes of any size", attributes},
	{"locks by the thousand", locks},
	{"messages cut and stretched", framing},
	{"rings that no driver makes", rings},
}

var ups = []string{"..", "../..", "../outside", "../outside/secret", "vol/../..", "./..", "..\x00", "/", "//", "/etc/passwd", "/proc/self/root"}

func walkAbove(s *session, t target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	root, err := s.qid(rootFID)
	if err != nil {
		return err
	}
	for _, depth := range []int{1, 2, 15, 16} {
		fid, err := s.walk(rootFID, strings.Split(strings.Repeat("../", depth)[:3*depth-1], "/")...)
		if err != nil {
			continue
		}
		q, err := s.qid(fid)
		if err != nil {
			return err
		}
		if q != root {
			return fmt.Errorf("%d steps up from the root lead to another file", depth)
		}
		s.reads(fid)
		if fid, err := s.walk(fid, strings.Split(strings.Trim(t.Outside, "/"), "/")...); err == nil {
			s.reads(fid)
			return errors.New("the host's root is above the share")
		}
	}
	for _, from := range []uint32{p.rootfs, p.vol, p.ro, p.file} {
		for _, names := range [][]string{{"..", "outside"}, {"..", "outside", "secret"}, {"..", "..", "..", "..", "..", "..", "..", "..", "tmp"}} {
			if fid, err := s.walk(from, names...); err == nil {
				s.reads(fid)
				return fmt.Errorf("%q leads from a bind to a file", names)
			}
		}
	}
	for _, count := range []int{17, 200} {
		if _, err := s.walk(p.vol, strings.Split(strings.Repeat(".. ", count)[:3*count-1], " ")...); err == nil {
			return fmt.Errorf("a walk of %d names", count)
		}
	}
	return nil
}

// pathNames sends paths in each request that takes a name.
func pathNames(s *session, t target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	names := append([]string{"", ".", t.Outside, t.Outside + "/secret", strings.Repeat("a", 256), strings.Repeat("../", 4000)}, ups...)
	for _, name := range names {
		short, _, _ := strings.Cut(name, "\x00") // what the server makes of it
		if fid, err := s.walk(p.vol, name); err == nil && short != "." && short != ".." {
			s.reads(fid)
			return fmt.Errorf("walk to %.50q", name)
		}
		if fid, err := s.make(p.vol, name); err == nil {
			s.clunk(fid)
			return fmt.Errorf("create %.50q", name)
		}
		file, err := s.make(p.vol, "file")
		if err != nil {
			return err
		}
		for what, request := range map[string][]any{
			"mkdir":       {tmkdir, p.vol, name, uint32(0o755), uint32(0)},
			"symlink":     {tsymlink, p.vol, name, "/", uint32(0)},
			"mknod":       {tmknod, p.vol, name, uint32(0o10644), uint32(0), uint32(0), uint32(0)},
			"link":        {tlink, p.vol, file, name},
			"rename from": {trenameat, p.vol, name, p.vol, "other"},
			"rename to":   {trenameat, p.vol, "file", p.vol, name},
			"rename":      {trename, file, p.vol, name},
			"unlink":      {tunlinkat, p.vol, name, uint32(0)},
			"rmdir":       {tunlinkat, p.vol, name, uint32(0x200)},
		} {
			if _, err := s.call(uint8(request[0].(int)), request[1:]...); err == nil {
				return fmt.Errorf("%s with the name %.50q", what, name)
			}
		}
		s.clunk(file)
		s.remove(p.vol, "file", "other")
	}
	return nil
}

func attachElsewhere(s *session, t target) error {
	if _, err := s.place(); err != nil {
		return err
	}
	root, err := s.qid(rootFID)
	if err != nil {
		return err
	}
	for _, name := range []string{"/", "..", t.Outside, "mounts", "\x00", strings.Repeat("/..", 1000)} {
		for _, user := range []string{"root", "nobody", "", name} {
			fid := s.fid()
			if _, err := s.call(tattach, fid, uint32(noFID), user, name, uint32(0)); err != nil {
				continue
			}
			if q, err := s.qid(fid); err != nil || q != root {
				return fmt.Errorf("attach to %q gives another root", name)
			}
		}
		_, _ = s.call(tauth, s.fid(), "root", name, uint32(0))
	}
	if _, err := s.call(tattach, uint32(rootFID), uint32(noFID), "root", "", uint32(0)); err == nil {
		return errors.New("a fid in use was attached once more")
	}
	return nil
}

// linksOut makes links that lead outside, and uses them in place of the files that they name.
func linksOut(s *session, t target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	targets := []string{t.Outside, t.Outside + "/secret", "../outside", "../outside/secret", "/proc/self/root" + t.Outside, "/proc/1/root", "/proc/self/cwd", "/proc/self/fd/3", "/"}
	for _, to := range targets {
		for _, dir := range []uint32{p.vol, p.rootfs} {
			s.remove(dir, "link")
			if _, err := s.call(tsymlink, dir, "link", to, uint32(0)); err != nil {
				return fmt.Errorf("make a link: %w", err)
			}
			link, err := s.walk(dir, "link")
			if err != nil {
				return fmt.Errorf("walk to a link: %w", err)
			}
			s.reads(link)
			s.changes(link)
			for _, below := range []string{"secret", "..", "."} {
				fid, err := s.walk(link, below)
				if err != nil {
					continue
				}
				s.reads(fid)
				if below == "secret" {
					return fmt.Errorf("walk through a link to %s", to)
				}
			}
			if fid, err := s.make(dir, "link"); err == nil { // O_CREAT through the link
				_, _ = s.call(twrite, fid, uint64(0), uint32(4), []byte("hurt"))
			}
			if fid, err := s.make(link, "made"); err == nil {
				s.clunk(fid)
				return fmt.Errorf("create below a link to %s", to)
			}
			for what, request := range map[string][]any{
				"mkdir":  {tmkdir, link, "made", uint32(0o755), uint32(0)},
				"unlink": {tunlinkat, link, "secret", uint32(0)},
				"rename": {trenameat, link, "secret", p.vol, "stolen"},
				"into":   {trenameat, dir, "link", link, "stolen"},
			} {
				if _, err := s.call(uint8(request[0].(int)), request[1:]...); err == nil {
					return fmt.Errorf("%s below a link to %s", what, to)
				}
			}
			s.remove(dir, "link", "stolen", "linked")
			s.clunk(link)
		}
	}
	return nil
}

// races: the test exchanges "swap", a directory with a file "secret", and a symbolic link to
// the directory outside, again and again. This side does the same with "mine".
func races(s *session, t target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	s.remove(p.vol, "mine", "mine.link")
	if _, err := s.call(tmkdir, p.vol, "mine", uint32(0o777), uint32(0)); err != nil {
		return err
	}
	if _, err := s.call(tsymlink, p.vol, "mine.link", t.Outside, uint32(0)); err != nil {
		return err
	}
	rounds := 0
	for end := after(t.Seconds); !end(); rounds++ {
		for _, name := range []string{"swap", "mine"} {
			dir, file, made, inner := s.fid(), s.fid(), s.fid(), s.fid()
			// All at once: the name is looked up while it changes its meaning.
			replies, err := s.d.Exchange(
				maxIn,
				message(twalk, 1, p.vol, dir, []string{name}),
				message(twalk, 2, p.vol, file, []string{name, "secret"}),
				message(trenameat, 3, p.vol, "mine", p.vol, "mine.old"),
				message(trenameat, 4, p.vol, "mine.link", p.vol, "mine"),
			)
			if err != nil {
				return err
			}
			for _, r := range replies {
				s.look(twalk, r)
			}
			if replies, err = s.d.Exchange(
				maxIn,
				message(tlopen, 1, file, uint32(openRDWR)),
				message(twalk, 2, dir, made, []string{}),
				message(twalk, 3, dir, inner, []string{"secret"}),
				message(tsetattr, 4, file, uint32(setMode|setSize|setMTime), uint32(0o4777), uint32(0), uint32(0), uint64(0), uint64(0), uint64(0), uint64(0), uint64(0)),
			); err != nil {
				return err
			}
			for _, r := range replies {
				s.look(twalk, r)
			}
			if replies, err = s.d.Exchange(
				maxIn,
				message(tread, 1, file, uint64(0), uint32(100)),
				message(twrite, 2, file, uint64(0), uint32(4), []byte("hurt")),
				message(tlcreate, 3, made, "hurt", uint32(openRDWR), uint32(0o644), uint32(0)),
				message(tunlinkat, 4, dir, "secret", uint32(0)),
			); err != nil {
				return err
			}
			for _, r := range replies {
				s.look(tread, r)
			}
			s.reads(inner)
			_, _ = s.call(tmknod, dir, "hurt.fifo", uint32(0o10644), uint32(0), uint32(0), uint32(0))
			_, _ = s.call(tsymlink, dir, "hurt.link", "/", uint32(0))
			_, _ = s.call(tlink, dir, file, "hurt.hard")
			_, _ = s.call(trenameat, p.vol, "mine", p.vol, "mine.link")
			_, _ = s.call(trenameat, p.vol, "mine.old", p.vol, "mine")
			s.remove(dir, "hurt", "hurt.fifo", "hurt.link", "hurt.hard")
			s.clunk(dir, file, made, inner)
		}
	}
	s.say("%d rounds", rounds)
	if rounds == 0 {
		return errors.New("not one round")
	}
	return nil
}

func readOnly(s *session, _ target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	file, err := s.walk(p.ro, "file")
	if err != nil {
		return err
	}
	for what, fid := range map[string]uint32{"directory": p.ro, "file in it": file} {
		if done := s.changes(fid); len(done) > 0 {
			return fmt.Errorf("of a read-only bind's %s: %s", what, strings.Join(done, ", "))
		}
	}
	// Each way to open, with each flag that may change it.
	for i := range uint32(3 * 20) {
		flags := i%3 | 1<<(i/3)&^3
		open, err := s.walk(file)
		if err != nil {
			return err
		}
		if _, err := s.call(tlopen, open, flags); err == nil {
			if _, err := s.call(twrite, open, uint64(0), uint32(4), []byte("hurt")); err == nil {
				return fmt.Errorf("written through a read-only bind, opened with %#o", flags)
			}
		}
		s.clunk(open)
	}
	return nil
}

func sealedRoot(s *session, _ target) error {
	if _, err := s.place(); err != nil {
		return err
	}
	mounts, err := s.walk(rootFID, "mounts")
	if err != nil {
		return err
	}
	for _, fid := range []uint32{rootFID, mounts} {
		if done := s.changes(fid); len(done) > 0 {
			return fmt.Errorf("of the export's own directories: %s", strings.Join(done, ", "))
		}
	}
	return nil
}

// neighbours: nothing beside a file that is bound alone can be reached.
func neighbours(s *session, _ target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	for _, names := range [][]string{{".."}, {"..", "neighbour"}, {"neighbour"}, {"..", "onefile"}} {
		fid, err := s.walk(p.file, names...)
		if err != nil {
			continue
		}
		s.reads(fid)
		if names[len(names)-1] == "neighbour" {
			return fmt.Errorf("%q leads from a file that is bound alone to its neighbour", names)
		}
	}
	return nil
}

func acrossBinds(s *session, _ target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	mine, err := s.make(p.vol, "mine.file")
	if err != nil {
		return err
	}
	theirs, err := s.walk(p.ro, "file")
	if err != nil {
		return err
	}
	for what, request := range map[string][]any{
		"link ro to vol":       {tlink, p.vol, theirs, "hurt"},
		"link ro to rootfs":    {tlink, p.rootfs, theirs, "hurt"},
		"link vol to ro":       {tlink, p.ro, mine, "hurt"},
		"link vol to rootfs":   {tlink, p.rootfs, mine, "hurt"},
		"link file to vol":     {tlink, p.vol, p.file, "hurt"},
		"link root to vol":     {tlink, p.vol, uint32(rootFID), "hurt"},
		"move vol to rootfs":   {trenameat, p.vol, "mine.file", p.rootfs, "hurt"},
		"move ro to vol":       {trenameat, p.ro, "file", p.vol, "hurt"},
		"move vol to ro":       {trenameat, p.vol, "mine.file", p.ro, "hurt"},
		"move the bind":        {trename, p.vol, p.rootfs, "hurt"},
		"move the root":        {trename, uint32(rootFID), p.vol, "hurt"},
		"rename over a bind":   {trenameat, p.rootfs, "bin", uint32(rootFID), "rootfs"},
		"remove a bind":        {tremove, p.ro},
		"remove the one file":  {tremove, p.file},
		"unlink a mount point": {tunlinkat, uint32(rootFID), "rootfs", uint32(0x200)},
	} {
		if _, err := s.call(uint8(request[0].(int)), request[1:]...); err == nil {
			return errors.New(what)
		}
	}
	s.clunk(mine)
	s.remove(p.vol, "mine.file")
	return nil
}

// deviceNodes: the test on the host checks whether one could be made. It must not be possible
// to open it.
func deviceNodes(s *session, _ target) error {
	p, err := s.place()
	if err != nil {
		return err
	}
	for _, n := range []struct {
		name               string
		mode, major, minor uint32
	}{{"disk", 0o60666, 8, 0}, {"loop", 0o60666, 7, 0}, {"zero", 0o20666, 1, 5}, {"full", 0o20666, 1, 7}, {"fifo", 0o10666, 0, 0}, {"socket", 0o140666, 0, 0}} {
		if _, err := s.call(tmknod, p.vol, n.name, n.mode, n.major, n.minor, uint32(0)); err != nil {
			s.say("mknod %s: %v", n.name, err)
		} else {
			s.say("mknod %s: made", n.name)
		}
	}
	for _, name := range []string{"disk", "loop", "zero", "full", "fifo", "socket", "host.zero"} {
		for _, flags := range []uint32{0, openWRONLY, openRDWR, 0o4000, 0o4002, 0o200000} {
			fid, err := s.walk(p.vol, name)
			if err != nil {
				break
			}
			if _, err := s.call(tlopen, fid, flags); err == nil {
				return fmt.Errorf("the server has opened the node %s", name)
			}
			s.clunk(fid)
		}
	}
	s.remove(p.vol, "fifo", "socket", "zero", "full", "loop", "disk")
	return nil
}
