package syscalls

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func TestIgnoringEINTR(t *testing.T) {
	calls := 0
	err := IgnoringEINTR(func() error {
		if calls++; calls < 3 {
			return unix.EINTR
		}
		return unix.ENOENT
	})
	if !errors.Is(err, unix.ENOENT) || calls != 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// TestCloseOnExec: a child of this process does not get a descriptor that this process has
// without the flag.
func TestCloseOnExec(t *testing.T) {
	fd, err := unix.Open(os.DevNull, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := CloseOnExec(fd); err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags of descriptor %d: %#x, %v", fd, flags, err)
	}
	if err := CloseOnExec(1 << 20); err != nil {
		t.Errorf("with no such descriptor: %v", err)
	}
}

func TestSocketPair(t *testing.T) {
	ours, theirs, err := SocketPair("test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ours.Close() }()
	cmd := exec.Command("sh", "-c", "echo hello >&3")
	cmd.ExtraFiles = []*os.File{theirs}
	err = errors.Join(cmd.Run(), theirs.Close())
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := ours.Read(buf); err != nil || string(buf[:n]) != "hello\n" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// TestPolledSocketPair: a deadline ends a pending Read of ours, and theirs is blocking.
func TestPolledSocketPair(t *testing.T) {
	ours, theirs, err := PolledSocketPair("test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	if err := ours.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if flags, err := unix.FcntlInt(theirs.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags of theirs: %#o, %v", flags, err)
	}
}

func TestConnPair(t *testing.T) {
	a, b, err := ConnPair("test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = a.Close(), b.Close() }()
	if _, err := a.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := b.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// TestJoinNamespaces: the thread that joins has the namespace, and no other has.
func TestJoinNamespaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make a mount namespace")
	}
	const own = "/proc/thread-self/ns/mnt"
	before, err := os.Readlink(own)
	if err != nil {
		t.Fatal(err)
	}
	onThread := func(f func() error) error {
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			done <- f() // without an unlock: the thread ends with the goroutine
		}()
		return <-done
	}
	var ns *os.File
	if err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNS); err == nil {
			ns, err = os.Open(own)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	var there string
	if err := onThread(func() (err error) {
		if err = JoinNamespaces(int(ns.Fd()), unix.CLONE_NEWNS); err == nil {
			there, err = os.Readlink(own)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if there == before {
		t.Error("the thread has not moved")
	}
	if after, err := os.Readlink(own); err != nil || after != before {
		t.Errorf("another thread is in %s, %v, and was in %s", after, err, before)
	}
}

// A namespace is the same by whatever path, and a directory is none.
func TestNamespaceOf(t *testing.T) {
	own, err := NamespaceOf("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := IdentityOf("/proc/thread-self/ns/net"); err != nil || again != own {
		t.Errorf("by another path: %v, %v; want %v", again, err, own)
	}
	if other, err := NamespaceOf("/proc/self/ns/mnt"); err != nil || other == own {
		t.Errorf("another namespace: %v, %v", other, err)
	}
	if _, err := NamespaceOf("/"); err == nil {
		t.Error("the root directory is a namespace")
	}
	if _, err := NamespaceOf("/proc/self/ns/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a path to nowhere: %v", err)
	}
}

func TestAssembleFilter(t *testing.T) {
	code, err := AssembleFilter([]bpf.Instruction{bpf.LoadAbsolute{Off: 4, Size: 4}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: 7, SkipTrue: 1}, bpf.RetConstant{Val: 1}, bpf.RetConstant{Val: 2}})
	if err != nil {
		t.Fatal(err)
	}
	want := []unix.SockFilter{{Code: 0x20, K: 4}, {Code: 0x15, Jt: 1, K: 7}, {Code: 0x06, K: 1}, {Code: 0x06, K: 2}}
	if !slices.Equal(code, want) {
		t.Errorf("%v, want %v", code, want)
	}
	if _, err := AssembleFilter([]bpf.Instruction{bpf.LoadAbsolute{Size: 3}}); err == nil {
		t.Error("an instruction that is none was assembled")
	}
}
