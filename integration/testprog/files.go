package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// files tests a directory call by call, and prints "ok NAME" or "FAIL NAME: reason" for each.
// The test checks on the host what it leaves.
func files(args []string) error {
	if len(args) != 1 {
		return errors.New("files wants a directory")
	}
	if err := os.Chdir(args[0]); err != nil {
		return err
	}
	for _, c := range append([]fileCall{
		{"mode", fileMode},
		{"owner", fileOwner},
		{"symlink", fileSymlink},
		{"hardlink", fileHardlink},
		{"xattr", fileXattr},
		{"rename", fileRename},
		{"rename-over", fileRenameOver},
		{"rename-dir", fileRenameDir},
		{"unlink-open", fileUnlinkOpen},
		{"mmap-read", fileMmapRead},
		{"mmap-write", fileMmapWrite},
		{"fsync", fileFsync},
		{"flock", fileFlock},
		{"fcntl-lock", fileFcntlLock},
		{"append", fileAppend},
		{"truncate", fileTruncate},
		{"sparse", fileSparse},
		{"times", fileTimes},
		{"readdir", fileReaddir},
		{"excl", fileExcl},
		{"fifo", fileFifo},
		{"socket", fileSocket},
		{"long-name", fileLongName},
		{"setgid-dir", fileSetgidDir},
		{"big", fileBig},
	}, serverFiles...) {
		if err := c.do(); err != nil {
			fmt.Printf("FAIL %s: %v\n", c.name, err)
			continue
		}
		fmt.Printf("ok %s\n", c.name)
	}
	return nil
}

func write(name, text string) error { return os.WriteFile(name, []byte(text), 0o644) }

func want(name, text string) error {
	got, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%s holds %d bytes %.60q, want %.60q", name, len(got), got, text)
	}
	return nil
}

func fileMode() error {
	if err := write("mode", "m"); err != nil {
		return err
	}
	for _, mode := range []uint32{0o600, 0o755, 0o4711, 0o2640} {
		if err := syscall.Chmod("mode", mode); err != nil {
			return fmt.Errorf("chmod %o: %w", mode, err)
		}
		var st syscall.Stat_t
		if err := syscall.Stat("mode", &st); err != nil {
			return err
		}
		if st.Mode&0o7777 != mode {
			return fmt.Errorf("mode is %o after chmod %o", st.Mode&0o7777, mode)
		}
	}
	return nil
}

func fileOwner() error {
	if err := write("owner", "o"); err != nil {
		return err
	}
	if err := os.Chown("owner", 1234, 5678); err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Stat("owner", &st); err != nil {
		return err
	}
	if st.Uid != 1234 || st.Gid != 5678 {
		return fmt.Errorf("owner is %d:%d", st.Uid, st.Gid)
	}
	return nil
}

func fileSymlink() error {
	if err := write("target", "through"); err != nil {
		return err
	}
	if err := os.Symlink("target", "symlink"); err != nil {
		return err
	}
	if err := os.Symlink("/no/such/target", "dangling"); err != nil {
		return err
	}
	if got, err := os.Readlink("dangling"); err != nil || got != "/no/such/target" {
		return fmt.Errorf("readlink: %q, %w", got, err)
	}
	if err := os.Lchown("dangling", 11, 12); err != nil {
		return err
	}
	return want("symlink", "through")
}

func fileHardlink() error {
	if err := write("link1", "one"); err != nil {
		return err
	}
	if err := os.Link("link1", "link2"); err != nil {
		return err
	}
	if err := write("link2", "two"); err != nil {
		return err
	}
	var a, b syscall.Stat_t
	if err := errors.Join(syscall.Stat("link1", &a), syscall.Stat("link2", &b)); err != nil {
		return err
	}
	if a.Ino != b.Ino || a.Nlink != 2 {
		return fmt.Errorf("inodes %d and %d, %d links", a.Ino, b.Ino, a.Nlink)
	}
	return want("link1", "two")
}

func fileXattr() error {
	if err := write("xattr", "x"); err != nil {
		return err
	}
	if err := syscall.Setxattr("xattr", "user.husk", []byte("value"), 0); err != nil {
		return fmt.Errorf("setxattr: %w", err)
	}
	buf := make([]byte, 100)
	n, err := syscall.Getxattr("xattr", "user.husk", buf)
	if err != nil || string(buf[:n]) != "value" {
		return fmt.Errorf("getxattr: %q, %w", buf[:max(n, 0)], err)
	}
	n, err = syscall.Listxattr("xattr", buf)
	if err != nil || !bytes.Contains(buf[:max(n, 0)], []byte("user.husk\x00")) {
		return fmt.Errorf("listxattr: %q, %w", buf[:max(n, 0)], err)
	}
	if err := syscall.Setxattr("xattr", "user.gone", []byte("y"), 0); err != nil {
		return err
	}
	return syscall.Removexattr("xattr", "user.gone")
}

func fileRename() error {
	if err := write("old", "renamed"); err != nil {
		return err
	}
	if err := os.Rename("old", "new"); err != nil {
		return err
	}
	if _, err := os.Lstat("old"); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the old name is still there: %w", err)
	}
	return want("new", "renamed")
}

// fileRenameOver replaces a file that is open, as editors and package managers do.
func fileRenameOver() error {
	if err := errors.Join(write("victim", "before"), write("victim.tmp", "after")); err != nil {
		return err
	}
	f, err := os.Open("victim")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Rename("victim.tmp", "victim"); err != nil {
		return err
	}
	buf := make([]byte, 10)
	n, err := f.Read(buf)
	if err != nil || string(buf[:n]) != "before" {
		return fmt.Errorf("the open file reads %q, %w", buf[:n], err)
	}
	return want("victim", "after")
}

func fileRenameDir() error {
	if err := os.MkdirAll("dir1/sub", 0o755); err != nil {
		return err
	}
	if err := write("dir1/sub/file", "moved"); err != nil {
		return err
	}
	f, err := os.OpenFile("dir1/sub/file", os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Rename("dir1", "dir2"); err != nil {
		return err
	}
	if _, err := f.WriteString(" on"); err != nil {
		return fmt.Errorf("write after the directory moved: %w", err)
	}
	if err := want("dir2/sub/file", "moved on"); err != nil {
		return err
	}
	if err := syscall.Rmdir("dir2"); !errors.Is(err, syscall.ENOTEMPTY) {
		return fmt.Errorf("rmdir of a full directory: %w", err)
	}
	return nil
}

func fileUnlinkOpen() error {
	f, err := os.OpenFile("unlinked", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("before "); err != nil {
		return err
	}
	if err := os.Remove("unlinked"); err != nil {
		return err
	}
	if _, err := f.WriteString("after"); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	buf := make([]byte, 100)
	n, err := f.ReadAt(buf, 0)
	if string(buf[:n]) != "before after" {
		return fmt.Errorf("read back %q, %w", buf[:n], err)
	}
	if _, err := f.Stat(); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if err := f.Truncate(3); err != nil {
		return fmt.Errorf("ftruncate: %w", err)
	}
	return nil
}

func mapFile(name string, prot int) ([]byte, func() error, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), prot, syscall.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("mmap: %w", err)
	}
	return b, func() error { return syscall.Munmap(b) }, nil
}

func fileMmapRead() error {
	text := string(bytes.Repeat([]byte("mapped"), 5000))
	if err := write("mmap-read", text); err != nil {
		return err
	}
	b, unmap, err := mapFile("mmap-read", syscall.PROT_READ)
	if err != nil {
		return err
	}
	if string(b) != text {
		return errors.New("the mapping does not show the file")
	}
	return unmap()
}

func fileMmapWrite() error {
	if err := write("mmap-write", string(bytes.Repeat([]byte{'-'}, 10000))); err != nil {
		return err
	}
	b, unmap, err := mapFile("mmap-write", syscall.PROT_READ|syscall.PROT_WRITE)
	if err != nil {
		return err
	}
	copy(b[8190:], "across pages")
	if err := unmap(); err != nil {
		return err
	}
	got, err := os.ReadFile("mmap-write")
	if err != nil {
		return err
	}
	if string(got[8190:8202]) != "across pages" {
		return fmt.Errorf("the file holds %q", got[8190:8202])
	}
	return nil
}

func fileFsync() error {
	f, err := os.Create("fsync")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("durable"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	if err := syscall.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	d, err := os.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("fsync of the directory: %w", err)
	}
	return nil
}

func twice(name string) (a, b *os.File, err error) {
	if err := write(name, ""); err != nil {
		return nil, nil, err
	}
	if a, err = os.OpenFile(name, os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	b, err = os.OpenFile(name, os.O_RDWR, 0)
	return a, b, err
}

func fileFlock() error {
	a, b, err := twice("flock")
	if err != nil {
		return err
	}
	defer a.Close()
	defer b.Close()
	if err := syscall.Flock(int(a.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return err
	}
	if err := syscall.Flock(int(b.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("a second exclusive lock: %w, want EWOULDBLOCK", err)
	}
	if err := syscall.Flock(int(a.Fd()), syscall.LOCK_UN); err != nil {
		return err
	}
	return syscall.Flock(int(b.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

func fileFcntlLock() error {
	if err := write("fcntl", "0123456789"); err != nil {
		return err
	}
	f, err := os.OpenFile("fcntl", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 2, Len: 3}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock); err != nil {
		return err
	}
	lock.Type = syscall.F_UNLCK
	return syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock)
}

// fileAppend writes by two descriptors in turn. Without O_APPEND one would overwrite the other.
func fileAppend() error {
	open := func() (*os.File, error) {
		return os.OpenFile("append", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	}
	a, err := open()
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := open()
	if err != nil {
		return err
	}
	defer b.Close()
	var text string
	for i := range 20 {
		f := []*os.File{a, b}[i%2]
		line := fmt.Sprintf("line %d\n", i)
		if _, err := f.WriteString(line); err != nil {
			return err
		}
		text += line
	}
	return want("append", text)
}

func fileTruncate() error {
	if err := write("truncate", "0123456789"); err != nil {
		return err
	}
	if err := os.Truncate("truncate", 4); err != nil {
		return err
	}
	if err := want("truncate", "0123"); err != nil {
		return err
	}
	if err := os.Truncate("truncate", 6); err != nil {
		return err
	}
	return want("truncate", "0123\x00\x00")
}

func fileSparse() error {
	f, err := os.Create("sparse")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("end"), 1<<32); err != nil {
		return err
	}
	buf := make([]byte, 3)
	if _, err := f.ReadAt(buf, 1<<32); err != nil || string(buf) != "end" {
		return fmt.Errorf("read back %q, %w", buf, err)
	}
	return os.Remove("sparse")
}

func fileTimes() error {
	if err := write("times", "t"); err != nil {
		return err
	}
	when := time.Unix(1_000_000_000, 123_456_789)
	if err := os.Chtimes("times", when, when); err != nil {
		return err
	}
	info, err := os.Stat("times")
	if err != nil {
		return err
	}
	if !info.ModTime().Equal(when) {
		return fmt.Errorf("mtime is %v, want %v", info.ModTime(), when)
	}
	return nil
}

func fileReaddir() error {
	const n = 500
	if err := os.Mkdir("many", 0o755); err != nil {
		return err
	}
	for i := range n {
		if err := write(filepath.Join("many", fmt.Sprintf("file-%04d", i)), ""); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir("many")
	if err != nil {
		return err
	}
	if len(entries) != n {
		return fmt.Errorf("%d entries, want %d", len(entries), n)
	}
	return os.RemoveAll("many")
}

func fileExcl() error {
	if err := write("excl", ""); err != nil {
		return err
	}
	f, err := os.OpenFile("excl", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if !errors.Is(err, os.ErrExist) {
		f.Close()
		return fmt.Errorf("O_EXCL on an existing file: %w", err)
	}
	return nil
}

func fileFifo() error {
	if err := syscall.Mkfifo("fifo", 0o600); err != nil {
		return err
	}
	got := make(chan string, 1)
	go func() {
		data, err := os.ReadFile("fifo")
		got <- fmt.Sprint(string(data), err)
	}()
	if err := write("fifo", "piped"); err != nil {
		return err
	}
	if text := <-got; text != "piped<nil>" {
		return errors.New(text)
	}
	return nil
}

func fileSocket() error {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: "socket"}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := syscall.Listen(fd, 1); err != nil {
		return err
	}
	c, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(c)
	if err := syscall.Connect(c, &syscall.SockaddrUnix{Name: "socket"}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

func fileLongName() error {
	name := string(bytes.Repeat([]byte("n"), 255))
	if err := write(name, "long"); err != nil {
		return err
	}
	if err := want(name, "long"); err != nil {
		return err
	}
	return os.Remove(name)
}

// fileSetgidDir checks that a file in a setgid directory gets the directory's group.
func fileSetgidDir() error {
	if err := os.Mkdir("setgid", 0o755); err != nil {
		return err
	}
	if err := errors.Join(os.Chown("setgid", 0, 77), syscall.Chmod("setgid", 0o2775), write("setgid/f", "")); err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Stat("setgid/f", &st); err != nil {
		return err
	}
	if st.Gid != 77 {
		return fmt.Errorf("the new file's group is %d, want 77", st.Gid)
	}
	return nil
}

func fileBig() error {
	block := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	f, err := os.Create("big")
	if err != nil {
		return err
	}
	defer f.Close()
	for range 16 {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	buf := make([]byte, len(block))
	for i := range 16 {
		if _, err := f.ReadAt(buf, int64(i)<<20); err != nil {
			return err
		}
		if !bytes.Equal(buf, block) {
			return fmt.Errorf("MiB %d differs", i)
		}
	}
	return os.Remove("big")
}
