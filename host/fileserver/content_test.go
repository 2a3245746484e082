package fileserver

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func unlinked(s *script) {
	f, err := os.OpenFile(s.path("file"), os.O_CREATE|os.O_RDWR, 0o644)
	s.say("%v", err)
	defer f.Close()
	f.WriteString("content")
	s.say("unlink: %v", os.Remove(s.path("file")))
	fd := int(f.Fd())
	s.say("truncate: %v", unix.Ftruncate(fd, 3))
	s.say("chmod: %v", unix.Fchmod(fd, 0o4711))
	s.say("chown: %v", unix.Fchown(fd, 7, 8))
	s.say("chmod: %v", unix.Fchmod(fd, 0o711))
	s.say("xattr: %v", unix.Fsetxattr(fd, "user.a", []byte("b"), 0))
	s.say("times: %v", unix.Futimes(fd, []unix.Timeval{{Sec: 5}, {Sec: 6}}))
	s.say("fallocate: %v", unix.Fallocate(fd, 0, 0, 1<<16))
	var st unix.Stat_t
	s.say("stat: %v", unix.Fstat(fd, &st))
	s.say("%o %d %d:%d %d", st.Mode, st.Nlink, st.Uid, st.Gid, st.Size)
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	s.say("open again: %v", err)
	again.Close()
	dir, err := os.Open(s.dir)
	s.say("%v", err)
	defer dir.Close()
	sub := s.path("sub")
	s.say("%v", unix.Mkdir(sub, 0o755))
	d, err := os.Open(sub)
	s.say("%v", err)
	defer d.Close()
	s.say("%v", os.Remove(sub))
	s.say("in a removed directory: %v", unix.Mkdirat(int(d.Fd()), "x", 0o755))
	names, err := d.Readdirnames(-1)
	s.say("%d %v", len(names), err)
}

func tmpfiles(s *script) {
	s.as(alice, func() {
		for _, more := range []int{0, unix.O_EXCL} {
			fd, err := unix.Open(s.dir, unix.O_TMPFILE|unix.O_RDWR|more, 0o666)
			s.say("open: %v", err)
			_, err = unix.Write(fd, []byte("content"))
			s.say("write: %v", err)
			name := fmt.Sprintf("linked-%d", more)
			s.say("link: %v", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, s.path(name), unix.AT_SYMLINK_FOLLOW))
			unix.Close(fd)
			s.look(name)
		}
	})
}

func holes(s *script) {
	f, err := os.Create(s.path("file"))
	s.say("%v", err)
	defer f.Close()
	fd := int(f.Fd())
	const block = 64 << 10
	_, err = f.WriteAt([]byte(strings.Repeat("d", 2*block)), 6<<30)
	s.say("write beyond 4 GiB: %v", err)
	seek := func(offset int64, whence int) {
		at, err := unix.Seek(fd, offset, whence)
		s.say("seek %d %d: %d %v", offset, whence, at, err)
	}
	for _, offset := range []int64{0, 1, 6 << 30, 6<<30 + block, 6<<30 + 2*block, -1} {
		seek(offset, unix.SEEK_DATA)
		seek(offset, unix.SEEK_HOLE)
	}
	s.say("punch: %v", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 6<<30, block))
	seek(0, unix.SEEK_DATA)
	s.say("keep size: %v", unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 6<<30, 4*block))
	s.say("zero: %v", unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 6<<30+block, block))
	s.say("nothing: %v", unix.Fallocate(fd, 0, 0, 0))
	b := make([]byte, 4)
	n, err := f.ReadAt(b, 6<<30+block)
	s.say("read: %d %v %q", n, err, b)
	out, err := os.Create(s.path("copy"))
	s.say("%v", err)
	defer out.Close()
	from, to := int64(6<<30-10), int64(5)
	n, err = unix.CopyFileRange(fd, &from, int(out.Fd()), &to, block, 0)
	s.say("copy: %d %v %d %d", n, err, from, to)
	s.look("file", "copy")
}

func renames(s *script) {
	reset := func() {
		for _, name := range []string{"a", "b"} {
			os.RemoveAll(s.path(name))
			write(s, s.path(name), name)
		}
	}
	rename := func(from, to string, flags uint) {
		s.say("rename %s %s %d: %v", from, to, flags, unix.Renameat2(unix.AT_FDCWD, s.path(from), unix.AT_FDCWD, s.path(to), flags))
		for _, name := range []string{"a", "b"} {
			content, err := os.ReadFile(s.path(name))
			s.say("%s: %q %v", name, content, err)
		}
		s.look("a", "b")
	}
	for _, flags := range []uint{0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT, unix.RENAME_EXCHANGE | unix.RENAME_NOREPLACE, 64} {
		reset()
		rename("a", "b", flags)
		reset()
		rename("a", "a", flags)
		reset()
		rename("a", "absent", flags)
		os.RemoveAll(s.path("absent"))
	}
	s.say("%v", os.MkdirAll(s.path("dir/sub"), 0o755))
	rename("dir", "dir/sub/x", 0)
	rename("dir/sub", "dir", 0)
	rename("a", "dir", 0)
	rename("dir", "b", 0)
}

func fileTimes(s *script) {
	write(s, s.path("file"), "x")
	s.say("%v", unix.Symlink("file", s.path("link")))
	for _, ts := range [][]unix.Timespec{
		{{Sec: 1, Nsec: 123456789}, {Sec: 2000000000, Nsec: 987654321}},
		{{Sec: -1, Nsec: 5}, {Sec: -1000, Nsec: 999999999}},
		{{Nsec: unix.UTIME_OMIT}, {Sec: 5000000000, Nsec: 1}},
		{{Sec: 7}, {Nsec: unix.UTIME_OMIT}},
		{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}},
		{{Sec: 1, Nsec: 1e9}, {}},
	} {
		for _, name := range []string{"file", "link"} {
			s.say("set: %v", unix.UtimesNanoAt(unix.AT_FDCWD, s.path(name), ts, unix.AT_SYMLINK_NOFOLLOW))
			var st unix.Stat_t
			s.say("%v", unix.Lstat(s.path(name), &st))
			s.say("%d %d", st.Atim, st.Mtim)
		}
	}
	var first, second unix.Stat_t
	s.say("%v", unix.Stat(s.path("file"), &first))
	s.say("chown to nobody: %v", unix.Chown(s.path("file"), -1, -1))
	s.say("%v", unix.Stat(s.path("file"), &second))
	s.say("noted: %v", first.Ctim != second.Ctim)
	var st unix.Statx_t
	before := time.Now()
	s.say("%v", unix.UtimesNanoAt(unix.AT_FDCWD, s.path("file"), []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}, 0))
	s.say("statx: %v", unix.Statx(unix.AT_FDCWD, s.path("file"), 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st))
	birth := time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
	s.say("mask %x, born within a minute: %v", st.Mask&(unix.STATX_BASIC_STATS|unix.STATX_BTIME), before.Sub(birth).Abs() < time.Minute)
	s.say("changed within a minute: %v", before.Sub(time.Unix(st.Mtime.Sec, 0)).Abs() < time.Minute)
}

func directIO(s *script) {
	write(s, s.path("file"), strings.Repeat("0123456789abcdef", 1024))
	fd, err := unix.Open(s.path("file"), unix.O_RDWR|unix.O_DIRECT, 0)
	s.say("open: %v", err)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	b, err := unix.Mmap(-1, 0, 16<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	s.say("%v", err)
	defer unix.Munmap(b)
	for _, io := range []struct {
		offset int64
		size   int
	}{{0, 4096}, {4096, 8192}, {512, 512}, {12 << 10, 16 << 10}, {16 << 10, 4096}} {
		clear(b) // the kernel may write behind the end of a file, or not
		n, err := unix.Pread(fd, b[:io.size], io.offset)
		s.say("read %v: %d %v %q", io, n, err, b[:8])
		n, err = unix.Pwrite(fd, b[:io.size], io.offset)
		s.say("write %v: %d %v", io, n, err)
	}
	s.look("file")
}

func links(s *script) {
	write(s, s.path("file"), "x")
	s.say("%v", unix.Symlink("/nowhere/at/all", s.path("symlink")))
	s.say("%v", unix.Mkfifo(s.path("fifo"), 0o600))
	for _, name := range []string{"file", "symlink", "fifo", "absent", "."} {
		s.say("link %s: %v", name, unix.Linkat(unix.AT_FDCWD, s.path(name), unix.AT_FDCWD, s.path(name+"-2"), 0))
		s.look(name, name+"-2")
	}
	var one, two unix.Stat_t
	s.say("%v %v", unix.Stat(s.path("file"), &one), unix.Stat(s.path("file-2"), &two))
	s.say("the same inode: %v", one.Ino == two.Ino)
	long := strings.Repeat("/l", 2047)
	s.say("long: %v", unix.Symlink(long, s.path("long")))
	target, err := os.Readlink(s.path("long"))
	s.say("%v %v", target == long, err)
	s.say("too long: %v", unix.Symlink(long+"/l", s.path("longer")))
	s.say("empty: %v", unix.Symlink("", s.path("empty")))
	s.say("chmod: %v", unix.Fchmodat(unix.AT_FDCWD, s.path("symlink"), 0o600, unix.AT_SYMLINK_NOFOLLOW))
	s.say("chown: %v", unix.Lchown(s.path("symlink"), 5, 6))
	s.look("symlink", "long")
}

func namedErrors(s *script) {
	s.say("%v", os.MkdirAll(s.path("dir/sub"), 0o755))
	write(s, s.path("file"), "x")
	long := strings.Repeat("n", 256)
	s.say("not empty: %v", unix.Rmdir(s.path("dir")))
	s.say("rmdir file: %v", unix.Rmdir(s.path("file")))
	s.say("unlink dir: %v", unix.Unlink(s.path("dir")))
	s.say("below a file: %v", unix.Mkdir(s.path("file/x"), 0o755))
	s.say("exists: %v", unix.Mkdir(s.path("dir"), 0o755))
	s.say("long: %v", unix.Mkdir(s.path(long), 0o755))
	s.say("longest: %v", unix.Mkdir(s.path(long[1:]), 0o755))
	for _, flags := range []int{unix.O_WRONLY, unix.O_CREAT | unix.O_EXCL, unix.O_CREAT | unix.O_RDWR, unix.O_DIRECTORY, unix.O_RDONLY | unix.O_TRUNC, unix.O_PATH} {
		for _, name := range []string{"dir", "file", "absent/x", "dir/"} {
			fd, err := unix.Open(s.path("")+"/"+name, flags, 0o644)
			s.say("open %s %x: %v", name, flags, err)
			unix.Close(fd)
		}
	}
	s.say("huge: %v", unix.Truncate(s.path("file"), 1<<62))
	s.say("negative: %v", unix.Truncate(s.path("file"), -1))
	var st unix.Statfs_t
	s.say("%v", unix.Statfs(s.dir, &st))
	s.say("statfs: %d %d %d %d", st.Bsize, st.Blocks, st.Files, st.Namelen)
}

func truncating(s *script) {
	write(s, s.path("file"), "0123456789")
	s.say("%v", unix.Chmod(s.path("file"), 0o222))
	s.as(alice, func() {
		s.say("shorten: %v", unix.Truncate(s.path("file"), 5))
		fd, err := unix.Open(s.path("file"), unix.O_RDONLY, 0)
		s.say("%v", err)
		unix.Close(fd)
		fd, err = unix.Open(s.path("file"), unix.O_WRONLY, 0)
		s.say("%v", err)
		s.say("lengthen: %v", unix.Ftruncate(fd, 20))
		unix.Close(fd)
	})
	s.say("dir: %v", unix.Truncate(s.dir, 5))
	content, err := os.ReadFile(s.path("file"))
	s.say("%q %v", content, err)
}

func appending(s *script) {
	write(s, s.path("file"), "one")
	f, err := os.OpenFile(s.path("file"), os.O_RDWR|os.O_APPEND, 0)
	s.say("%v", err)
	defer f.Close()
	fd := int(f.Fd())
	unix.Write(fd, []byte(" two"))
	n, err := unix.Pwrite(fd, []byte(" three"), 0)
	s.say("pwrite: %d %v", n, err)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	s.say("no longer: %v", err)
	n, err = unix.Pwrite(fd, []byte("ONE"), 0)
	s.say("pwrite: %d %v", n, err)
	content, err := os.ReadFile(s.path("file"))
	s.say("%q %v", content, err)
}

func sockets(s *script) {
	address := &net.UnixAddr{Name: s.path("s"), Net: "unix"}
	listener, err := net.ListenUnix("unix", address)
	s.say("listen: %v", err)
	if err != nil {
		return
	}
	defer listener.Close()
	conn, err := net.DialUnix("unix", nil, address)
	s.say("dial: %v", err)
	if err == nil {
		conn.Close()
	}
	s.say("%v", unix.Mkfifo(s.path("fifo"), 0o600))
	both, err := unix.Open(s.path("fifo"), unix.O_RDWR|unix.O_NONBLOCK, 0)
	s.say("fifo: %v", err)
	defer unix.Close(both)
	unix.Write(both, []byte("through"))
	b := make([]byte, 10)
	n, err := unix.Read(both, b)
	s.say("%q %v", b[:max(n, 0)], err)
}

func mapped(s *script) {
	write(s, s.path("file"), strings.Repeat("x", 8192))
	f, err := os.OpenFile(s.path("file"), os.O_RDWR, 0)
	s.say("%v", err)
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	s.say("map: %v", err)
	if err != nil {
		return
	}
	defer unix.Munmap(b)
	copy(b[4096:], "mapped")
	got := make([]byte, 6)
	f.ReadAt(got, 4096)
	s.say("read: %q", got)
	f.WriteAt([]byte("written"), 10)
	s.say("memory: %q", b[10:17])
	s.say("sync: %v", unix.Msync(b, unix.MS_SYNC))
}

func inodeFlags(s *script) {
	write(s, s.path("file"), "x")
	s.say("%v", unix.Mkdir(s.path("dir"), 0o755))
	for _, name := range []string{"file", "dir"} {
		f, err := os.Open(s.path(name))
		s.say("open: %v", err)
		fd := int(f.Fd())
		flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		s.say("get: %#x %v", uint32(flags), err)
		for _, flag := range []int{0x40, 0x20} { // no dump, append only
			s.say("set %#x: %v", flag, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|flag))
			got, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
			s.say("get: %#x %v", uint32(got), err)
			if name == "file" {
				s.say("write: %v", os.WriteFile(s.path(name), []byte("y"), 0o644))
				s.say("append: %v", appendTo(s.path(name), "z"))
			} else {
				s.say("make: %v", os.WriteFile(s.path("dir/x"), nil, 0o644))
				s.say("remove: %v", unix.Unlink(s.path("dir/x")))
			}
		}
		s.as(alice, func() {
			f, err := os.Open(s.path(name))
			s.say("alice opens: %v", err)
			s.say("alice sets: %v", unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags))
			f.Close()
		})
		s.say("reset: %v", unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags))
		s.say("other: %v", unix.IoctlSetPointerInt(fd, 0x40047777, 0))
		f.Close()
	}
}
