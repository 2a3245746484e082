package fileserver

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lockArgs are the body of a request about a lock.
func lockArgs(fh, owner uint64, start, end uint64, kind int, flags uint32) []byte {
	body := append(u64(fh), u64(owner)...)
	body = append(body, append(u64(start), u64(end)...)...)
	body = append(body, append(u32(uint32(kind)), u32(77)...)...)
	return append(body, append(u32(flags), u32(0)...)...)
}

const toEnd = 1<<63 - 1

// Locks of the client's owners hold against each other and against the host's processes.
func TestLocks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write(t, path, "content")
	c := newClient(t, dir, nil)
	node := c.lookup(rootID, "file")
	one, two := c.open(node, unix.O_RDWR), c.open(node, unix.O_RDWR)
	host, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	onHost := func(kind int16, start, length int64) error {
		lock := unix.Flock_t{Type: kind, Start: start, Len: length}
		return unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, &lock)
	}

	c.must(opSetlk, node, lockArgs(one, 1, 10, 19, unix.F_WRLCK, 0))
	c.must(opSetlk, node, lockArgs(two, 1, 15, 24, unix.F_WRLCK, 0)) // the same owner
	c.refused(unix.EAGAIN, opSetlk, node, lockArgs(two, 2, 19, 30, unix.F_RDLCK, 0))
	if err := onHost(unix.F_RDLCK, 20, 1); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the host locks what the client has locked: %v", err)
	}
	if err := onHost(unix.F_WRLCK, 100, 10); err != nil {
		t.Error(err)
	}
	c.refused(unix.EAGAIN, opSetlk, node, lockArgs(two, 2, 90, toEnd, unix.F_RDLCK, 0))
	answer := c.must(opGetlk, node, lockArgs(two, 2, 0, toEnd, unix.F_WRLCK, 0))
	if start, end, kind, pid := order.Uint64(answer), order.Uint64(answer[8:]), order.Uint32(answer[16:]), order.Uint32(answer[20:]); start != 10 || end != 24 || kind != unix.F_WRLCK || pid != 77 {
		t.Errorf("in the way: %d to %d, kind %d of %d", start, end, kind, pid)
	}
	answer = c.must(opGetlk, node, lockArgs(two, 2, 50, toEnd, unix.F_WRLCK, 0))
	if start, pid := order.Uint64(answer), order.Uint32(answer[20:]); start != 100 || pid != 0 {
		t.Errorf("in the way of the host: from %d of %d", start, pid)
	}
	c.must(opSetlk, node, lockArgs(one, 1, 10, 14, unix.F_UNLCK, 0))
	if err := onHost(unix.F_RDLCK, 10, 5); err != nil {
		t.Errorf("unlocked: %v", err)
	}
	// The close of any descriptor ends a process's locks.
	c.must(opFlush, node, u64(two), u64(0), u64(1))
	if err := onHost(unix.F_WRLCK, 0, 30); err != nil {
		t.Errorf("after the close: %v", err)
	}
	if err := onHost(unix.F_UNLCK, 0, 0); err != nil {
		t.Error(err)
	}
	// An OFD lock's owner is the open file, whose last close is told by RELEASE only.
	c.must(opSetlk, node, lockArgs(two, 3, 0, toEnd, unix.F_WRLCK, 0))
	c.must(opRelease, node, u64(two), make([]byte, 16))
	if err := onHost(unix.F_WRLCK, 0, 30); err != nil {
		t.Errorf("after the release: %v", err)
	}

	c.must(opSetlk, node, lockArgs(one, 9, 0, toEnd, unix.F_WRLCK, lockFlock))
	if err := unix.Flock(int(host.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("flock: %v", err)
	}
	c.must(opRelease, node, u64(one), make([]byte, 16))
	if err := unix.Flock(int(host.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		t.Errorf("flock after the release: %v", err)
	}
	if n := len(c.server.locks.byOwner); n != 0 {
		t.Errorf("%d owners are left", n)
	}
}

func (w *waits) has(unique uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[unique] != nil
}

// Waits for locks end by their lock, by INTERRUPT, by Interrupt and by the server's end, and
// there are no more of them than allowed.
func TestWaits(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write(t, path, "content")
	c := newClient(t, dir, func(e *Export) { e.Limits.Waits = 3 })
	node := c.lookup(rootID, "file")
	fh := c.open(node, unix.O_RDWR)
	host, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if err := unix.Flock(int(host.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	all := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, &all); err != nil {
		t.Fatal(err)
	}
	ended := make(chan unix.Errno, 10)
	wait := func(flags uint32, pid uint32) (unique uint64) {
		m := c.request(opSetlkw, node, lockArgs(fh, 5, 0, toEnd, unix.F_WRLCK, flags))
		order.PutUint32(m[32:], pid)
		go func() {
			errno, _ := c.send(m)
			ended <- errno
		}()
		for !c.server.locks.waits.has(order.Uint64(m[8:])) {
			runtime.Gosched()
		}
		return order.Uint64(m[8:])
	}
	expect := func(what string, want unix.Errno) {
		t.Helper()
		select {
		case got := <-ended:
			if got != want {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s: waits for ever", what)
		}
	}
	for range 20 {
		unique := wait(lockFlock, 1)
		c.server.Handle(c.request(opInterrupt, 0, u64(unique)), nil)
		expect("flock, interrupted", unix.EINTR)
	}
	wait(0, 5)
	wait(lockFlock, 6)
	unique := wait(0, 5)
	c.refused(unix.ENOLCK, opSetlkw, node, lockArgs(fh, 8, 0, toEnd, unix.F_WRLCK, 0))
	c.server.Interrupt(6)
	expect("by its process", unix.EINTR)
	c.server.Handle(c.request(opInterrupt, 0, u64(unique)), nil)
	expect("interrupted", unix.EINTR)
	host.Close()
	expect("unlocked", 0)

	// The interrupt comes first.
	m := c.request(opSetlkw, node, lockArgs(fh, 9, 0, toEnd, unix.F_WRLCK, 0))
	c.server.Handle(c.request(opInterrupt, 0, u64(order.Uint64(m[8:]))), nil)
	if errno, _ := c.send(m); errno != unix.EINTR {
		t.Errorf("interrupted before: %v", errno)
	}
	for range 1000 {
		c.server.Handle(c.request(opInterrupt, 0, u64(4242)), nil)
	}
	if n := len(c.server.locks.waits.early); n > maxEarly {
		t.Errorf("%d interrupts are remembered", n)
	}
	again, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	wait(lockFlock, 5)
	c.server.Close()
	expect("closed", unix.EINTR)
}

// A process's locks below the mount are what they are on the bare file.
func TestLocksBelowMount(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	mounted, _, source := beside(t, Export{})
	write(t, filepath.Join(source, "file"), "x")
	open := func(dir string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, "file"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	host, one, two := open(source), open(mounted), open(mounted)
	try := func(what string, f *os.File, command int, kind int16, start int64, want error) {
		t.Helper()
		lock := unix.Flock_t{Type: kind, Start: start, Len: 10}
		if err := unix.FcntlFlock(f.Fd(), command, &lock); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	const process, file = unix.F_SETLK, unix.F_OFD_SETLK
	try("process", one, process, unix.F_WRLCK, 0, nil)
	try("the same process by another file", two, process, unix.F_WRLCK, 5, nil)
	try("the host", host, file, unix.F_WRLCK, 12, unix.EAGAIN)
	try("a file", two, file, unix.F_WRLCK, 0, unix.EAGAIN)
	other := open(mounted)
	other.Close() // drops all of the process
	try("the host after a close", host, file, unix.F_WRLCK, 0, nil)
	try("process", one, process, unix.F_RDLCK, 0, unix.EAGAIN)
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(one.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type != unix.F_WRLCK || lock.Start != 0 || lock.Len != 10 {
		t.Errorf("in the way is %+v, %v", lock, err)
	}
	try("the host", host, file, unix.F_UNLCK, 0, nil)

	third := open(mounted)
	try("a file", third, file, unix.F_WRLCK, 0, nil)
	try("another file", two, file, unix.F_WRLCK, 0, unix.EAGAIN)
	open(mounted).Close()
	try("the host", host, file, unix.F_WRLCK, 0, unix.EAGAIN)
	third.Close()
	// The last close is told to the server when the process has gone on.
	wait := unix.Flock_t{Type: unix.F_WRLCK, Len: 10}
	if err := unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLKW, &wait); err != nil {
		t.Error(err)
	}
	if err := unix.Flock(int(one.Fd()), unix.LOCK_SH); err != nil {
		t.Error(err)
	}
	if err := unix.Flock(int(two.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		t.Error(err)
	}
	if err := unix.Flock(int(host.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("flock by the host: %v", err)
	}
}

// A process below the mount waits for a lock of the host's, and is killed while it waits.
func TestWaitBelowMount(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	mounted, _, source := beside(t, Export{})
	write(t, filepath.Join(source, "file"), "x")
	host, err := os.OpenFile(filepath.Join(source, "file"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if err := unix.Flock(int(host.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// flock -w ends its wait by a signal, which INTERRUPT brings to the server.
	out, err := exec.CommandContext(ctx, "flock", "-w", "0.2", filepath.Join(mounted, "file"), "true").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("flock that gives up: %v, %s", err, out)
	}
	waiting := exec.CommandContext(ctx, "flock", filepath.Join(mounted, "file"), "true")
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	host.Close()
	if err := waiting.Wait(); err != nil {
		t.Errorf("flock that waits: %v", err)
	}
}
