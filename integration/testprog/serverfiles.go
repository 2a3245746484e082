package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
	"unsafe"
)

// serverFiles are file calls of databases, servers and package managers.
var serverFiles = []fileCall{
	{"device", fileDevice},
	{"socket-mode", fileSocketMode},
	{"socket-moves", fileSocketMoves},
	{"socket-again", fileSocketAgain},
	{"fifo-mode", fileFifoMode},
	{"lock-between-processes", fileLockBetweenProcesses},
	{"lock-of-description", fileLockOfDescription},
	{"mmap-with-write", fileMmapWithWrite},
	{"mmap-of-two", fileMmapOfTwo},
	{"direct", fileDirect},
	{"sync-write", fileSyncWrite},
	{"tmpfile", fileTmpfile},
	{"unlinked-truncate", fileUnlinkedTruncate},
	{"unlinked-mode", fileUnlinkedMode},
	{"unlinked-owner", fileUnlinkedOwner},
	{"unlinked-twin", fileUnlinkedTwin},
	{"times-now", fileTimesNow},
	{"rename-noreplace", fileRenameNoReplace},
	{"allocate", fileAllocate},
	{"copy-range", fileCopyRange},
	{"unlink-while-reading-dir", fileUnlinkWhileReadingDir},
	{"many-open", fileManyOpen},
	{"dir-removed-inside", fileDirRemovedInside},
	{"capability", fileCapability},
	{"exec-written", fileExecWritten},
	{"inotify-open", fileInotifyOpen},
	{"inotify", fileInotify},
}

type fileCall struct {
	name string
	do   func() error
}

func modeOf(name string) (uint32, error) {
	var st syscall.Stat_t
	err := syscall.Lstat(name, &st)
	return st.Mode, err
}

func fileDevice() error {
	if err := syscall.Mknod("device", syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
		return err
	}
	if err := syscall.Chmod("device", 0o622); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	var st syscall.Stat_t
	if err := syscall.Lstat("device", &st); err != nil {
		return err
	}
	if st.Mode != syscall.S_IFCHR|0o622 || st.Rdev != 1<<8|3 {
		return fmt.Errorf("mode %o, device %#x", st.Mode, st.Rdev)
	}
	return nil
}

func listenAt(name string) (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return -1, err
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: name}); err != nil {
		syscall.Close(fd)
		return -1, fmt.Errorf("bind: %w", err)
	}
	return fd, syscall.Listen(fd, 8)
}

func connectTo(name string) error {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return syscall.Connect(fd, &syscall.SockaddrUnix{Name: name})
}

// fileSocketMode: PostgreSQL and nginx do chmod and chown after bind.
func fileSocketMode() error {
	fd, err := listenAt("socket-mode")
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.Chmod("socket-mode", 0o777); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	if err := os.Lchown("socket-mode", 21, 22); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if mode, err := modeOf("socket-mode"); err != nil || mode != syscall.S_IFSOCK|0o777 {
		return fmt.Errorf("mode is %o, %w", mode, err)
	}
	return connectTo("socket-mode")
}

// fileSocketMoves: systemd and runit bind another name and rename it.
func fileSocketMoves() error {
	fd, err := listenAt("socket-tmp")
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := os.Rename("socket-tmp", "socket-moved"); err != nil {
		return err
	}
	if err := connectTo("socket-moved"); err != nil {
		return fmt.Errorf("connect under the new name: %w", err)
	}
	if err := os.Link("socket-moved", "socket-link"); err != nil {
		return err
	}
	return os.Remove("socket-link")
}

// fileSocketAgain: a server restarts and finds its old socket.
func fileSocketAgain() error {
	fd, err := listenAt("socket-again")
	if err != nil {
		return err
	}
	syscall.Close(fd)
	if err := connectTo("socket-again"); !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("connect to a socket nobody listens on: %w, want ECONNREFUSED", err)
	}
	if _, err := listenAt("socket-again"); !errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("bind over it: %w, want EADDRINUSE", err)
	}
	if err := os.Remove("socket-again"); err != nil {
		return err
	}
	if fd, err = listenAt("socket-again"); err != nil {
		return err
	}
	defer syscall.Close(fd)
	return connectTo("socket-again")
}

func fileFifoMode() error {
	if err := syscall.Mkfifo("fifo-mode", 0o600); err != nil {
		return err
	}
	if err := syscall.Chmod("fifo-mode", 0o622); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	if mode, err := modeOf("fifo-mode"); err != nil || mode != syscall.S_IFIFO|0o622 {
		return fmt.Errorf("mode is %o, %w", mode, err)
	}
	return os.Remove("fifo-mode")
}

// tryLock is the other process of fileLockBetweenProcesses. It succeeds if the lock is held, as
// expected.
func tryLock(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 4, Len: 1}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock); !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("a held lock was given: %w", err)
	}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &lock); err != nil || lock.Type == syscall.F_UNLCK {
		return fmt.Errorf("who holds it: type %d, %w", lock.Type, err)
	}
	other := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 100, Len: 1}
	return syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &other)
}

func fileLockBetweenProcesses() error {
	if err := write("lock", "0123456789"); err != nil {
		return err
	}
	f, err := os.OpenFile("lock", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 2, Len: 5}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "trylock", "lock")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("the other process: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// fileLockOfDescription tests OFD locks, which QEMU uses, and SQLite on some systems.
func fileLockOfDescription() error {
	const setLock = 37 // F_OFD_SETLK
	a, b, err := twice("ofd")
	if err != nil {
		return err
	}
	defer a.Close()
	defer b.Close()
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 0, Len: 10}
	if err := syscall.FcntlFlock(a.Fd(), setLock, &lock); err != nil {
		return err
	}
	lock = syscall.Flock_t{Type: syscall.F_WRLCK, Start: 5, Len: 1}
	if err := syscall.FcntlFlock(b.Fd(), setLock, &lock); !errors.Is(err, syscall.EAGAIN) {
		return fmt.Errorf("a second lock: %w, want EAGAIN", err)
	}
	return nil
}

// fileMmapWithWrite: one process maps what another writes, as with SQLite's WAL and PostgreSQL.
func fileMmapWithWrite() error {
	if err := write("mmap-mixed", string(bytes.Repeat([]byte{'-'}, 8192))); err != nil {
		return err
	}
	b, unmap, err := mapFile("mmap-mixed", syscall.PROT_READ|syscall.PROT_WRITE)
	if err != nil {
		return err
	}
	f, err := os.OpenFile("mmap-mixed", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range 50 {
		text := fmt.Sprintf("write %04d", i)
		if _, err := f.WriteAt([]byte(text), 4090); err != nil {
			return err
		}
		if got := string(b[4090 : 4090+len(text)]); got != text {
			return fmt.Errorf("the mapping shows %q after a write of %q", got, text)
		}
		text = fmt.Sprintf("store %04d", i)
		copy(b[100:], text)
		got := make([]byte, len(text))
		if _, err := f.ReadAt(got, 100); err != nil || string(got) != text {
			return fmt.Errorf("a read gives %q after a store of %q, %w", got, text, err)
		}
	}
	return unmap()
}

func fileMmapOfTwo() error {
	if err := write("mmap-two", string(bytes.Repeat([]byte{'-'}, 8192))); err != nil {
		return err
	}
	a, unmapA, err := mapFile("mmap-two", syscall.PROT_READ|syscall.PROT_WRITE)
	if err != nil {
		return err
	}
	b, unmapB, err := mapFile("mmap-two", syscall.PROT_READ|syscall.PROT_WRITE)
	if err != nil {
		return err
	}
	copy(a[5000:], "shared")
	if string(b[5000:5006]) != "shared" {
		return fmt.Errorf("the other mapping shows %q", b[5000:5006])
	}
	return errors.Join(unmapA(), unmapB())
}

func fileDirect() error {
	f, err := os.OpenFile("direct", os.O_RDWR|os.O_CREATE|syscall.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	room := make([]byte, 3*4096)
	block := room[4096-int(uintptr(unsafe.Pointer(&room[0]))%4096):][:8192]
	copy(block, bytes.Repeat([]byte("directly"), 1024))
	if _, err := f.WriteAt(block, 0); err != nil {
		return err
	}
	text := string(block)
	clear(block)
	if _, err := f.ReadAt(block, 0); err != nil || string(block) != text {
		return fmt.Errorf("read back %.20q, %w", block, err)
	}
	return want("direct", text)
}

func fileSyncWrite() error {
	f, err := os.OpenFile("sync", os.O_WRONLY|os.O_CREATE|os.O_SYNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("at once"); err != nil {
		return err
	}
	const dsync = syscall.O_DSYNC
	d, err := os.OpenFile("sync", os.O_WRONLY|os.O_APPEND|dsync, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := d.WriteString(", twice"); err != nil {
		return err
	}
	return want("sync", "at once, twice")
}

// fileTmpfile expects O_TMPFILE, or the error after which programs use a name instead.
func fileTmpfile() error {
	const tmpfile = 0o20000000 | syscall.O_DIRECTORY
	fd, err := syscall.Open(".", tmpfile|syscall.O_RDWR, 0o600)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	return syscall.Close(fd)
}

// unlinked returns a file that has no name any more.
func unlinked(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString("0123456789"); err != nil {
		return nil, err
	}
	return f, os.Remove(name)
}

func fileUnlinkedTruncate() error {
	f, err := unlinked("gone-1")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(4); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil || info.Size() != 4 {
		return fmt.Errorf("the size is %d, %w", info.Size(), err)
	}
	return nil
}

func fileUnlinkedMode() error {
	f, err := unlinked("gone-2")
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Chmod(0o640)
}

func fileUnlinkedOwner() error {
	f, err := unlinked("gone-3")
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Chown(12, 13)
}

// fileUnlinkedTwin: another file with the name of one that was removed and is still open stays
// unchanged, whatever is done to the first.
func fileUnlinkedTwin() error {
	f, err := unlinked("twin")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := write("twin", "the second"); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	return want("twin", "the second")
}

func fileTimesNow() error {
	if err := write("now", ""); err != nil {
		return err
	}
	old := time.Unix(1_000_000_000, 0)
	if err := os.Chtimes("now", old, old); err != nil {
		return err
	}
	before := time.Now().Add(-2 * time.Second)
	// UTIME_NOW, as touch does.
	if err := syscall.UtimesNano("now", []syscall.Timespec{{Nsec: 1<<30 - 1}, {Nsec: 1<<30 - 1}}); err != nil {
		return err
	}
	info, err := os.Stat("now")
	if err != nil || info.ModTime().Before(before) {
		return fmt.Errorf("mtime is %v, %w", info.ModTime(), err)
	}
	return nil
}

func fileRenameNoReplace() error {
	const (
		renameat2 = 316
		noReplace = 1
	)
	if err := errors.Join(write("no-1", "1"), write("no-2", "2")); err != nil {
		return err
	}
	from, _ := syscall.BytePtrFromString("no-1")
	to, _ := syscall.BytePtrFromString("no-2")
	cwd := -100
	_, _, errno := syscall.Syscall6(renameat2, uintptr(cwd), uintptr(unsafe.Pointer(from)), uintptr(cwd), uintptr(unsafe.Pointer(to)), noReplace, 0)
	// EINVAL means that the filesystem has no RENAME_NOREPLACE; programs do without it then.
	if errno != syscall.EEXIST && errno != syscall.EINVAL {
		return fmt.Errorf("over an existing file: %w", errno)
	}
	return want("no-2", "2")
}

func fileAllocate() error {
	f, err := os.Create("allocate")
	if err != nil {
		return err
	}
	defer f.Close()
	// After EOPNOTSUPP libc's posix_fallocate writes the file instead.
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, 1<<16); err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
		return err
	}
	return nil
}

func fileCopyRange() error {
	if err := write("range-1", "copied by the kernel"); err != nil {
		return err
	}
	from, err := os.Open("range-1")
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Create("range-2")
	if err != nil {
		return err
	}
	defer to.Close()
	if _, err := to.ReadFrom(from); err != nil {
		return err
	}
	return want("range-2", "copied by the kernel")
}

func fileUnlinkWhileReadingDir() error {
	if err := os.Mkdir("draining", 0o755); err != nil {
		return err
	}
	const n = 300
	for i := range n {
		if err := write(fmt.Sprintf("draining/%d", i), ""); err != nil {
			return err
		}
	}
	d, err := os.Open("draining")
	if err != nil {
		return err
	}
	defer d.Close()
	removed := 0
	for {
		names, err := d.Readdirnames(7)
		for _, name := range names {
			if err := os.Remove("draining/" + name); err != nil {
				return err
			}
			removed++
		}
		if err != nil {
			break
		}
	}
	if removed != n {
		return fmt.Errorf("%d of %d names seen", removed, n)
	}
	return os.Remove("draining")
}

// fileManyOpen opens more files than the 1024 descriptors that QEMU may have, as a database
// with many tables or a proxy with a cache does.
func fileManyOpen() error {
	const n = 1100
	files := make([]*os.File, n)
	for i := range n {
		f, err := os.OpenFile("many-open", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return fmt.Errorf("descriptor %d: %w", i, err)
		}
		defer f.Close()
		files[i] = f
	}
	for _, i := range []int{0, 1, 500, 1023, 1024, n - 1} {
		text := fmt.Sprintf("%04d", i)
		if _, err := files[i].WriteAt([]byte(text), int64(i*4)); err != nil {
			return fmt.Errorf("write to descriptor %d: %w", i, err)
		}
		got := make([]byte, 4)
		if _, err := files[n-1-i].ReadAt(got, int64(i*4)); err != nil || string(got) != text {
			return fmt.Errorf("descriptor %d reads %q, %w", n-1-i, got, err)
		}
	}
	return nil
}

func fileDirRemovedInside() error {
	if err := os.Mkdir("doomed", 0o755); err != nil {
		return err
	}
	d, err := os.Open("doomed")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := os.Remove("doomed"); err != nil {
		return err
	}
	if names, err := d.Readdirnames(-1); err != nil && !errors.Is(err, syscall.ENOENT) || len(names) > 0 {
		return fmt.Errorf("it lists %v, %w", names, err)
	}
	return nil
}

// fileCapability sets a capability, as dpkg does for ping.
func fileCapability() error {
	if err := write("capable", ""); err != nil {
		return err
	}
	value := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // version 2, cap_net_raw=ep
	if err := syscall.Setxattr("capable", "security.capability", value, 0); err != nil {
		return err
	}
	buf := make([]byte, 100)
	n, err := syscall.Getxattr("capable", "security.capability", buf)
	if err != nil || !bytes.Equal(buf[:n], value) {
		return fmt.Errorf("read back %x, %w", buf[:max(n, 0)], err)
	}
	return nil
}

// fileExecWritten executes a file right after writing it, as after a compiler.
func fileExecWritten() error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile("program", self, 0o755); err != nil {
		return err
	}
	out, err := exec.Command("./program", "trylock", "/no/such/file").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		return fmt.Errorf("%w: %s", err, out)
	}
	return os.Remove("program")
}

// watchAndWrite says whether a watch on a directory reports a new file in it.
func watchAndWrite(name string) error {
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if _, err := syscall.InotifyAddWatch(fd, name, syscall.IN_CREATE); err != nil {
		return err
	}
	if err := write(name+"/file", ""); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	if n, err := syscall.Read(fd, buf); n <= 0 {
		return fmt.Errorf("no event: %w", err)
	}
	return nil
}

// fileInotifyOpen watches a directory that it keeps open, as tail and systemd do.
func fileInotifyOpen() error {
	if err := os.Mkdir("watched-open", 0o755); err != nil {
		return err
	}
	d, err := os.Open("watched-open")
	if err != nil {
		return err
	}
	defer d.Close()
	return watchAndWrite("watched-open")
}

func fileInotify() error {
	if err := os.Mkdir("watched", 0o755); err != nil {
		return err
	}
	return watchAndWrite("watched")
}
