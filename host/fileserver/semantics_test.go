package fileserver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func pointer[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

// alice has a group of her own and is in another.
var alice = user{name: "alice", uid: 1000, gid: 1000, groups: []int{2000}, umask: 0o022}

var (
	root = user{name: "root"}
	weak = user{name: "weak", drop: []uint{unix.CAP_FSETID}}
)

// TestAsTheBareDirectory: what programs see below a mount is what they see in the directory
// itself.
func TestAsTheBareDirectory(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	mounted, bare, _ := beside(t, Export{Devices: true, Trusted: true})
	for name, run := range map[string]func(*script){
		"making": making, "set-group-id": setGroupID, "permissions": permissions, "acl": acl,
		"set-user-id": setUserID, "capabilities": fileCapabilities, "xattr": xattrs,
		"unlinked": unlinked, "tmpfile": tmpfiles, "holes": holes, "renames": renames,
		"times": fileTimes, "direct": directIO, "links": links, "errors": namedErrors,
		"append": appending, "sockets": sockets, "mapped": mapped, "truncate": truncating, "flags": inodeFlags,
	} {
		compare(t, mounted, bare, name, run)
	}
}

func making(s *script) {
	for i, u := range []user{{}, {umask: 0o077}, alice, {uid: 1000, gid: 1000, umask: 0}, {uid: 7, gid: 8, umask: 0o027}} {
		s.as(u, func() {
			n := func(kind string) string { return fmt.Sprintf("%s-%d", kind, i) }
			fd, err := unix.Open(s.path(n("file")), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o6777)
			s.say("create: %v", err)
			unix.Close(fd)
			s.say("mkdir: %v", unix.Mkdir(s.path(n("dir")), 0o1777))
			s.say("symlink: %v", unix.Symlink("target", s.path(n("link"))))
			s.say("fifo: %v", unix.Mkfifo(s.path(n("fifo")), 0o666))
			s.say("socket: %v", unix.Mknod(s.path(n("socket")), unix.S_IFSOCK|0o666, 0))
			s.say("regular: %v", unix.Mknod(s.path(n("regular")), unix.S_IFREG|0o666, 0))
			s.say("device: %v", unix.Mknod(s.path(n("device")), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 300))))
			s.say("block: %v", unix.Mknod(s.path(n("block")), unix.S_IFBLK|0o666, int(unix.Mkdev(4000, 70000))))
			s.say("whiteout: %v", unix.Mknod(s.path(n("whiteout")), unix.S_IFCHR, 0))
			s.look(n("file"), n("dir"), n("link"), n("fifo"), n("socket"), n("regular"), n("device"), n("block"), n("whiteout"))
		})
	}
}

func setGroupID(s *script) {
	for _, group := range []int{1000, 2000, 3000} {
		dir := fmt.Sprintf("of-%d", group)
		s.say("%v", unix.Mkdir(s.path(dir), 0o777))
		s.say("%v", unix.Chown(s.path(dir), 0, group))
		s.say("%v", unix.Chmod(s.path(dir), 0o2777))
		for _, u := range []user{alice, root, weak} {
			name := u.name
			s.as(u, func() {
				for _, mode := range []uint32{0o2777, 0o2766, 0o644} {
					file := fmt.Sprintf("%s/%s-%o", dir, name, mode)
					fd, err := unix.Open(s.path(file), unix.O_CREAT|unix.O_RDWR, mode)
					s.say("%v", err)
					unix.Close(fd)
					s.say("%v", unix.Mkdir(s.path(file+"-dir"), mode))
				}
				s.say("%v", unix.Chmod(s.path(dir+"/"+name+"-644"), 0o2755))
			})
		}
		for _, name := range []string{"alice", "root", "weak"} {
			for _, mode := range []string{"2777", "2766", "644"} {
				s.look(dir+"/"+name+"-"+mode, dir+"/"+name+"-"+mode+"-dir")
			}
		}
	}
}

func permissions(s *script) {
	write(s, s.path("roots"), "root's")
	s.say("%v", unix.Chmod(s.path("roots"), 0o600))
	s.say("%v", unix.Mkdir(s.path("closed"), 0o700))
	write(s, s.path("closed/file"), "x")
	s.say("%v", unix.Mkdir(s.path("sticky"), 0o777))
	s.say("%v", unix.Chmod(s.path("sticky"), 0o1777))
	write(s, s.path("sticky/file"), "x")
	write(s, s.path("group"), "x")
	s.say("%v", unix.Chown(s.path("group"), 0, 2000))
	s.say("%v", unix.Chmod(s.path("group"), 0o660))
	s.as(alice, func() {
		for _, name := range []string{"roots", "closed/file", "group"} {
			for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR | unix.O_TRUNC, unix.O_RDONLY | unix.O_NOATIME} {
				fd, err := unix.Open(s.path(name), flags, 0)
				s.say("open %s %x: %v", name, flags, err)
				unix.Close(fd)
			}
			s.say("chmod: %v", unix.Chmod(s.path(name), 0o777))
			s.say("chown: %v", unix.Chown(s.path(name), 1000, 1000))
			s.say("truncate: %v", unix.Truncate(s.path(name), 0))
			s.say("access: %v", unix.Access(s.path(name), unix.R_OK|unix.W_OK))
			s.say("utimes: %v", unix.Utimes(s.path(name), nil))
			s.say("link: %v", unix.Link(s.path(name), s.path("new")))
			os.Remove(s.path("new"))
		}
		s.say("unlink: %v", unix.Unlink(s.path("sticky/file")))
		s.say("rename: %v", unix.Rename(s.path("sticky/file"), s.path("sticky/other")))
		s.say("create: %v", os.WriteFile(s.path("closed/new"), nil, 0o666))
		_, err := os.ReadDir(s.path("closed"))
		s.say("list: %v", err)
	})
	s.as(user{drop: []uint{unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH}}, func() {
		s.say("%v", unix.Chmod(s.path("roots"), 0o000))
		_, err := os.ReadFile(s.path("roots"))
		s.say("root without capabilities reads: %v", err)
	})
	s.look("roots", "closed", "sticky", "sticky/file", "group")
}

// aclOf makes the value of an ACL: pairs of tag, permissions and id.
func aclOf(entries ...[3]uint32) []byte {
	b := u32(2)
	for _, e := range entries {
		b = append(b, byte(e[0]), byte(e[0]>>8), byte(e[1]), byte(e[1]>>8))
		b = append(b, u32(e[2])...)
	}
	return b
}

const noID = 1<<32 - 1

func acl(s *script) {
	write(s, s.path("file"), "x")
	value := aclOf([3]uint32{1, 6, noID}, [3]uint32{2, 4, 1000}, [3]uint32{4, 0, noID}, [3]uint32{0x10, 4, noID}, [3]uint32{0x20, 0, noID})
	s.say("set: %v", unix.Setxattr(s.path("file"), accessACL, value, 0))
	got := make([]byte, 200)
	n, err := unix.Getxattr(s.path("file"), accessACL, got)
	s.say("get: %v %x", err, got[:max(n, 0)])
	s.look("file")
	s.as(alice, func() {
		_, err := os.ReadFile(s.path("file"))
		s.say("alice reads: %v", err)
		s.say("alice writes: %v", os.WriteFile(s.path("file"), nil, 0))
		s.say("alice sets: %v", unix.Setxattr(s.path("file"), accessACL, value, 0))
	})
	s.as(user{uid: 1001, gid: 1001}, func() {
		_, err := os.ReadFile(s.path("file"))
		s.say("bob reads: %v", err)
	})
	s.say("chmod: %v", unix.Chmod(s.path("file"), 0o666))
	n, err = unix.Getxattr(s.path("file"), accessACL, got)
	s.say("get: %v %x", err, got[:max(n, 0)])
	s.say("mkdir: %v", unix.Mkdir(s.path("dir"), 0o777))
	s.say("default: %v", unix.Setxattr(s.path("dir"), defaultACL, aclOf([3]uint32{1, 7, noID}, [3]uint32{2, 7, 1000}, [3]uint32{4, 5, noID}, [3]uint32{0x10, 7, noID}, [3]uint32{0x20, 1, noID}), 0))
	s.as(user{umask: 0o077}, func() {
		s.say("%v", os.WriteFile(s.path("dir/file"), nil, 0o666))
		s.say("%v", unix.Mkdir(s.path("dir/dir"), 0o777))
		s.say("%v", unix.Mkfifo(s.path("dir/fifo"), 0o666))
		s.look("dir/file", "dir/dir", "dir/fifo")
		for _, name := range []string{"dir/file", "dir/dir", "dir/fifo"} {
			for _, attr := range []string{accessACL, defaultACL} {
				n, err := unix.Getxattr(s.path(name), attr, got)
				s.say("%s %s: %v %x", name, attr, err, got[:max(n, 0)])
			}
		}
	})
	s.say("group: %v", unix.Chown(s.path("file"), 1000, 3000))
	s.say("mode: %v", unix.Chmod(s.path("file"), 0o2770))
	s.as(alice, func() { s.say("set by one not of the group: %v", unix.Setxattr(s.path("file"), accessACL, value, 0)) })
	s.look("file")
	s.say("remove: %v", unix.Removexattr(s.path("file"), accessACL))
	s.say("bad: %v", unix.Setxattr(s.path("file"), accessACL, []byte("no acl"), 0))
	s.look("file")
}

func setUserID(s *script) {
	// Each way to change a file, by root and by another.
	ways := map[string]func(path string) error{
		"write": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("x")
			return err
		},
		"truncate": func(path string) error { return unix.Truncate(path, 1) },
		"O_TRUNC": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
			f.Close()
			return err
		},
		"fallocate": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			return unix.Fallocate(int(f.Fd()), 0, 0, 100)
		},
		"chown":   func(path string) error { return unix.Chown(path, 1000, 1000) },
		"nothing": func(string) error { return nil },
	}
	for _, mode := range []uint32{0o4777, 0o2777, 0o6767, 0o6777} {
		for _, way := range []string{"write", "truncate", "O_TRUNC", "fallocate", "chown", "nothing"} {
			for _, u := range []user{root, alice, weak} {
				who := u.name
				if who == "weak" && (way == "fallocate" || way == "chown") {
					continue // the protocol does not say that root lacks a capability
				}
				name := fmt.Sprintf("%s-%s-%o", way, who, mode)
				write(s, s.path(name), "content")
				unix.Chown(s.path(name), 1000, 1000)
				unix.Chmod(s.path(name), mode)
				var st unix.Stat_t
				s.as(u, func() {
					err := ways[way](s.path(name))
					unix.Stat(s.path(name), &st)
					if err != nil || st.Mode == 0 {
						s.Errorf("%s: %v", name, err)
					}
				})
				write(s, s.path(name+".seen"), fmt.Sprintf("%o", st.Mode))
			}
		}
	}
	seen, _ := filepath.Glob(s.path("*.seen"))
	for _, path := range seen {
		content, _ := os.ReadFile(path)
		s.say("%s: %s", filepath.Base(path), content)
	}
}

func fileCapabilities(s *script) {
	value := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // v2, effective, net_bind_service
	for _, u := range []user{root, alice} {
		write(s, s.path("file"), "x")
		s.say("chmod: %v", unix.Chmod(s.path("file"), 0o777))
		s.say("set: %v", unix.Setxattr(s.path("file"), capabilities, value, 0))
		got := make([]byte, 100)
		n, err := unix.Getxattr(s.path("file"), capabilities, got)
		s.say("get: %v %x", err, got[:max(0, n)])
		s.as(u, func() { s.say("append: %v", appendTo(s.path("file"), "x")) })
		n, err = unix.Getxattr(s.path("file"), capabilities, got)
		s.say("after a write: %v %d", err, n)
	}
	s.as(alice, func() { s.say("alice: %v", unix.Setxattr(s.path("file"), capabilities, value, 0)) })
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

func xattrs(s *script) {
	write(s, s.path("file"), "x")
	s.say("%v", unix.Mkdir(s.path("dir"), 0o777))
	s.say("%v", unix.Symlink("file", s.path("link")))
	s.say("%v", unix.Mkfifo(s.path("fifo"), 0o666))
	big := []byte(strings.Repeat("v", 3000))
	got := make([]byte, 64<<10)
	for _, name := range []string{"file", "dir", "link", "fifo"} {
		for _, attr := range []string{"user.a", "trusted.b", "system.c", "security.capability", "none", "user.", "user." + strings.Repeat("n", 300)} {
			path := s.path(name)
			s.say("%s %s set: %v", name, attr, unix.Lsetxattr(path, attr, []byte("value"), 0))
			s.say("create: %v", unix.Lsetxattr(path, attr, []byte("value"), unix.XATTR_CREATE))
			s.say("replace: %v", unix.Lsetxattr(path, attr, big, unix.XATTR_REPLACE))
			n, err := unix.Lgetxattr(path, attr, got)
			s.say("get: %v %d", err, n)
			n, err = unix.Lgetxattr(path, attr, nil)
			s.say("size: %v %d", err, n)
			n, err = unix.Lgetxattr(path, attr, got[:1])
			s.say("small: %v %d", err, n)
			n, err = unix.Llistxattr(path, got)
			s.say("list: %v %q", err, got[:max(n, 0)])
			n, err = unix.Llistxattr(path, got[:1])
			s.say("small list: %v %d", err, n)
			s.as(alice, func() {
				n, err := unix.Lgetxattr(path, attr, got)
				s.say("alice gets: %v %d", err, n)
				s.say("alice sets: %v", unix.Lsetxattr(path, attr, []byte("value"), 0))
			})
			s.say("remove: %v", unix.Lremovexattr(path, attr))
			s.say("again: %v", unix.Lremovexattr(path, attr))
		}
	}
	s.say("empty: %v", unix.Setxattr(s.path("file"), "user.empty", nil, 0))
	n, err := unix.Getxattr(s.path("file"), "user.empty", got)
	s.say("get: %v %d", err, n)
	s.say("too big: %v", unix.Setxattr(s.path("file"), "user.big", make([]byte, 65537), 0))
}
