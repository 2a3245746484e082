package fileserver

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// answer checks the form of whatever the server answers.
func checkAnswer(t testing.TB, request, reply []byte, n int) {
	t.Helper()
	if n == 0 {
		return
	}
	if n < outHeaderSize || n > len(reply) || int(order.Uint32(reply)) != n {
		t.Fatalf("%x is answered by %d bytes of %d", request, n, len(reply))
	}
	if errno := -int32(order.Uint32(reply[4:])); errno < 0 || errno >= 512 || errno != 0 && n != outHeaderSize {
		t.Fatalf("%x is answered by error %d and %d bytes", request, errno, n)
	}
}

// Every operation with bodies of every length and with every room for an answer: nothing
// panics, nothing is written beyond the room.
func TestEveryLength(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { os.Chmod(dir, 0o700) }) // what SETATTR made of it
	write(t, filepath.Join(dir, "file"), "content")
	c := newClient(t, dir, nil)
	for opcode := range uint32(operationCount + 2) {
		if opcode == opSyncfs { // has no body; each would write out the machine's disk
			continue
		}
		for _, fill := range []byte{0, 1, 'a', 0xff} {
			for length := range 120 {
				body := bytes.Repeat([]byte{fill}, length)
				for _, room := range []int{15, 17, 200} {
					m := c.request(opcode, rootID, body)
					reply := bytes.Repeat([]byte{0xee}, room+8)
					checkAnswer(t, m, reply[:room], c.server.Handle(m, reply[:room:room]))
					if !bytes.Equal(reply[room:], bytes.Repeat([]byte{0xee}, 8)) {
						t.Fatalf("%x is answered beyond the room", m)
					}
				}
			}
		}
		if opcode == opInit || opcode == opDestroy {
			c.must(opInit, 0, u32(7), u32(36), u32(4096), u32(initFlags), make([]byte, 48))
		}
	}
}

func TestHostileMessages(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "content")
	write(t, filepath.Join(dir, "other"), "content")
	c := newClient(t, dir, func(e *Export) { e.Limits = Limits{Nodes: 50, Handles: 20} })
	node, other := c.lookup(rootID, "file"), c.lookup(rootID, "other")
	fh := c.open(node, unix.O_RDWR)
	rest := make([]byte, 20)

	for name, m := range map[string][]byte{
		"empty":               nil,
		"less than a header":  make([]byte, inHeaderSize-1),
		"longer than it says": append(c.request(opGetattr, rootID, make([]byte, 16)), 0),
	} {
		reply := make([]byte, 4096)
		n := c.server.Handle(m, reply)
		if n != 0 && order.Uint32(reply[4:]) == 0 {
			t.Errorf("%s: is served", name)
		}
	}
	huge := u32(1<<32 - 1)
	for _, step := range []struct {
		want   unix.Errno
		opcode uint32
		node   uint64
		body   []byte
	}{
		{unix.EINVAL, opWrite, node, slices.Concat(u64(fh), u64(0), huge, u32(0), u64(0), u32(0), u32(0), []byte("x"))},
		{unix.EINVAL, opWrite, node, slices.Concat(u64(fh), u64(1<<63), u32(1), u32(0), u64(0), u32(0), u32(0), []byte("x"))},
		{unix.EINVAL, opRead, node, slices.Concat(u64(fh), u64(1<<63), u32(10), rest)},
		{unix.EBADF, opRead, other, slices.Concat(u64(fh), u64(0), u32(10), rest)}, // another file's
		{unix.EBADF, opRead, node, slices.Concat(u64(99), u64(0), u32(10), rest)},
		{unix.ENOTDIR, opReaddir, node, slices.Concat(u64(fh), u64(0), u32(10), rest)},
		{unix.EINVAL, opSetxattr, node, slices.Concat(huge, u32(0), u64(0), text("user.a"), []byte("v"))},
		{unix.EINVAL, opFallocate, node, slices.Concat(u64(fh), u64(1<<63), u64(1), u32(0), u32(0))},
		{unix.EINVAL, opLseek, node, slices.Concat(u64(fh), u64(0), u32(unix.SEEK_CUR), u32(0))},
		{unix.EINVAL, opSetlk, node, lockArgs(fh, 1, 10, 5, unix.F_WRLCK, 0)},
		{unix.EINVAL, opSetlk, node, lockArgs(fh, 1, 0, 1<<63, unix.F_WRLCK, 0)},
		{unix.EINVAL, opSetlk, node, lockArgs(fh, 1, 0, 5, 17, 0)},
		{unix.ENOTDIR, opRename, node, slices.Concat(u64(rootID), text("a"), text("b"))},
		{unix.ENOTDIR, opRename, rootID, slices.Concat(u64(node), text("file"), text("b"))},
		{unix.EINVAL, opRename, rootID, slices.Concat(u64(rootID), text("file"), text("../b"))},
		{unix.EINVAL, opRename2, rootID, slices.Concat(u64(rootID), huge, u32(0), text("file"), text("b"))},
		{unix.ESTALE, opRename, rootID, slices.Concat(u64(1<<40), text("file"), text("b"))},
		{unix.EPERM, opLink, rootID, slices.Concat(u64(rootID), text("hard"))}, // of a directory
		{unix.EINVAL, opLink, rootID, slices.Concat(u64(node), text(".."))},
		{unix.EINVAL, opMknod, rootID, slices.Concat(u32(unix.S_IFDIR), u64(0), u32(0), text("d"))},
		{unix.EINVAL, opMknod, rootID, slices.Concat(u32(unix.S_IFLNK), u64(0), u32(0), text("d"))},
		{unix.EPERM, opMknod, rootID, slices.Concat(u32(unix.S_IFBLK|0o666), u32(8<<8), u64(0), text("sda"))},
		{unix.EPERM, opMknod, rootID, slices.Concat(u32(unix.S_IFCHR|0o666), u32(1<<8|1), u64(0), text("mem"))},
		{unix.EINVAL, opUnlink, rootID, text("..")},
		{unix.EINVAL, opUnlink, rootID, text("a/b")},
		{unix.EINVAL, opSetattr, node, slices.Concat(u32(setAtime), make([]byte, 52), u32(unix.UTIME_NOW), make([]byte, 28))},
		{unix.EFBIG, opSetattr, node, slices.Concat(u32(setSize), make([]byte, 12), u64(1<<63), make([]byte, 64))},
		{unix.EBADF, opSetattr, node, slices.Concat(u32(setSize|setHandle), u32(0), u64(77), u64(0), make([]byte, 64))},
		{unix.EINVAL, opSetattr, rootID, slices.Concat(u32(setSize), make([]byte, 84))},
		{unix.EPERM, opSetxattr, node, slices.Concat(u32(1), u32(0), u64(0), text("security.selinux"), []byte("v"))},
		{unix.EPERM, opSetxattr, node, slices.Concat(u32(1), u32(0), u64(0), text("trusted.a"), []byte("v"))},
		{unix.EOPNOTSUPP, opGetxattr, node, slices.Concat(u64(10), text("system.nfs4_acl"))},
		{unix.ENOSYS, 4711, rootID, nil},
		{unix.ESTALE, opGetattr, 0, make([]byte, 16)},
	} {
		c.refused(step.want, step.opcode, step.node, step.body)
	}

	// The root cannot be forgotten, nor more than was looked up.
	c.server.Handle(c.request(opForget, rootID, u64(1<<63)), nil)
	c.server.Handle(c.request(opBatchForget, 0, huge, u32(0), u64(rootID), u64(5), u64(other), u64(1<<63)), nil)
	c.must(opGetattr, rootID, make([]byte, 16))
	c.refused(unix.ESTALE, opGetattr, other, make([]byte, 16))
	// A file that is forgotten while it is open stays what it was.
	c.server.Handle(c.request(opForget, node, u64(1)), nil)
	if got := string(c.must(opRead, node, u64(fh), u64(0), u32(100), rest)); got != "content" {
		t.Errorf("a forgotten file: %q", got)
	}
	// Tables are bounded.
	node = c.lookup(rootID, "file")
	var errno unix.Errno
	for range 100 {
		if errno, _ = c.try(opOpen, node, u32(0), u32(0)); errno != 0 {
			break
		}
	}
	if errno != unix.ENFILE {
		t.Errorf("open without end: %v", errno)
	}
	for i := range 100 {
		if errno, _ = c.try(opMkdir, rootID, u32(0o755), u32(0), text(fmt.Sprint("dir", i))); errno != 0 {
			break
		}
	}
	if errno != unix.ENFILE {
		t.Errorf("look up without end: %v", errno)
	}
	c.must(opDestroy, 0)
	c.refused(unix.EIO, opGetattr, rootID, make([]byte, 16))
	c.must(opInit, 0, u32(7), u32(31), u32(4096), u32(initFlags&^initExt))
	c.refused(unix.EPROTO, opInit, 0, u32(7), u32(30), u32(4096), u32(0))
	if n, m := len(c.server.nodes.byID), len(c.server.handles.byID); n != 1 || m != 0 {
		t.Errorf("after the end of the session %d nodes and %d handles", n, m)
	}
}

// A read-only export refuses every change, and descriptors go back when the server ends.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "content")
	c := newClient(t, dir, func(e *Export) { e.ReadOnly = true })
	node := c.lookup(rootID, "file")
	for opcode := range uint32(operationCount) {
		if operations[opcode].change {
			c.refused(unix.EROFS, opcode, rootID, make([]byte, 200))
		}
	}
	for _, flags := range []uint32{unix.O_WRONLY, unix.O_RDWR, unix.O_TRUNC} {
		c.refused(unix.EROFS, opOpen, node, u32(flags), u32(0))
	}
	c.open(node, unix.O_RDONLY)
}

// Requests of all kinds at once, with the end of the server amid them.
func TestConcurrency(t *testing.T) {
	dir := t.TempDir()
	c := newClient(t, dir, nil)
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for i := range 60 {
				name := fmt.Sprint("name", (worker+i)%5)
				_, answer := c.try(opCreate, rootID, u32(unix.O_RDWR), u32(0o644), u32(0), u32(0), text(name))
				if len(answer) >= entrySize+openOutSize {
					node, fh := order.Uint64(answer), order.Uint64(answer[entrySize:])
					c.try(opWrite, node, u64(fh), u64(0), u32(4), u32(0), u64(0), u64(0), []byte("text"))
					c.try(opSetlk, node, lockArgs(fh, uint64(worker), 0, 10, unix.F_WRLCK, 0))
					c.try(opFlush, node, u64(fh), u64(0), u64(uint64(worker)))
					c.try(opRelease, node, u64(fh), make([]byte, 16))
					c.server.Handle(c.request(opForget, node, u64(1)), nil)
				}
				if _, answer = c.try(opLookup, rootID, text(name)); len(answer) > 0 {
					node := order.Uint64(answer)
					c.try(opSetxattr, node, u32(1), u32(0), u64(0), text("user.a"), []byte("v"))
					c.server.Handle(c.request(opForget, node, u64(1)), nil)
				}
				c.try(opUnlink, rootID, text(name))
				if worker == 0 && i == 40 {
					c.must(opInit, 0, u32(7), u32(36), u32(4096), u32(initFlags), make([]byte, 48))
				}
			}
		})
	}
	group.Go(func() {
		for range 20 {
			if errno, answer := c.try(opOpendir, rootID, u32(0), u32(0)); errno == 0 {
				fh := order.Uint64(answer)
				c.try(opReaddirplus, rootID, u64(fh), u64(0), u32(4096), make([]byte, 20))
				c.try(opReleasedir, rootID, u64(fh), make([]byte, 16))
			}
		}
	})
	group.Wait()
}

// countDescriptors counts this process's descriptors of files below dir.
func countDescriptors(t *testing.T, dir string) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range all {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, dir) {
			n++
		}
	}
	return n
}

func TestDescriptorsGoBack(t *testing.T) {
	dir := t.TempDir()
	for i := range 30 {
		write(t, filepath.Join(dir, fmt.Sprint("file", i)), "content")
	}
	c := newClient(t, dir, nil)
	for i := range 30 {
		node := c.lookup(rootID, fmt.Sprint("file", i))
		fh := c.open(node, unix.O_RDWR)
		c.must(opSetlk, node, lockArgs(fh, uint64(i), 0, toEnd, unix.F_WRLCK, 0))
	}
	if n := countDescriptors(t, dir); n < 90 {
		t.Errorf("%d descriptors", n)
	}
	c.server.Close()
	if n := countDescriptors(t, dir); n != 0 {
		t.Errorf("%d descriptors are left", n)
	}
	c.refused(unix.ENODEV, opGetattr, rootID, make([]byte, 16))
}

// FuzzHandle gives a server sequences of messages, and looks whether something beside its
// directory was touched or told.
func FuzzHandle(f *testing.F) {
	for _, seed := range seeds() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		// Here and not before: the process that leads the fuzzing makes a big file.
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 64 << 20, Max: 64 << 20}); err != nil {
			t.Fatal(err)
		}
		top := t.TempDir()
		inside, outside := filepath.Join(top, "inside"), filepath.Join(top, "outside")
		if err := os.Mkdir(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, outside, "the secret of the host")
		os.Symlink("../outside", filepath.Join(inside, "l"))
		write(t, filepath.Join(inside, "f"), "content")
		var before, after unix.Stat_t
		if err := unix.Stat(outside, &before); err != nil {
			t.Fatal(err)
		}
		c := newClient(t, inside, nil)
		for n := 0; len(input) > 2 && n < 64; n++ {
			size := min(int(input[0]), len(input)-2)
			m := c.message(input[1], input[2:2+size])
			input = input[2+size:]
			if m == nil {
				continue
			}
			reply := make([]byte, 8192)
			got := c.bounded(m, reply)
			checkAnswer(t, m, reply, got)
			if bytes.Contains(reply[:got], []byte("secret")) {
				t.Fatalf("%x tells the secret", m)
			}
		}
		if err := unix.Stat(outside, &after); err != nil || after.Mode != before.Mode || after.Size != before.Size || after.Mtim != before.Mtim || after.Ctim != before.Ctim || after.Nlink != before.Nlink {
			t.Fatalf("outside was touched: %v", err)
		}
	})
}

// message makes one of a fuzzer's bytes: the node, then the body. Fallocate could fill the
// disk of the machine that the fuzzer runs on.
func (c *client) message(opcode byte, rest []byte) []byte {
	node := uint64(rootID)
	if len(rest) > 0 {
		node = uint64(rest[0] % 16)
		rest = rest[1:]
	}
	if opcode == opFallocate {
		return nil
	}
	return c.request(uint32(opcode), node, rest)
}

// bounded is Handle for messages that may wait for a lock.
func (c *client) bounded(m, reply []byte) int {
	done := make(chan int, 1)
	go func() { done <- c.server.Handle(m, reply) }()
	select {
	case n := <-done:
		return n
	case <-time.After(time.Second):
		c.server.Interrupt(1)
		return <-done
	}
}

// seeds are sequences that reach every operation.
func seeds() [][]byte {
	message := func(opcode, node byte, body ...[]byte) []byte {
		b := slices.Concat(body...)
		return slices.Concat([]byte{byte(len(b) + 1), opcode, node}, b)
	}
	first := slices.Concat(
		message(opLookup, 1, text("f")),
		message(opLookup, 1, text("l")),
		message(opOpen, 2, u32(unix.O_RDWR), u32(0)),
		message(opOpendir, 1, u32(0), u32(0)),
	)
	entry := slices.Concat(
		message(opCreate, 1, u32(unix.O_RDWR), u32(0o644), u32(0), u32(0), text("new")),
		message(opMkdir, 1, u32(0o755), u32(0), text("d")),
		message(opSymlink, 1, text("s"), text("../outside")),
		message(opMknod, 1, u32(unix.S_IFIFO|0o666), u32(0), u32(0), u32(0), text("p")),
		message(opLookup, 1, text("s")), message(opLookup, 1, text("p")), message(opLookup, 1, text("d")),
		message(opLink, 1, u64(3), text("hard")),
		message(opRename2, 1, u64(5), u32(1), u32(0), text("f"), text("g")),
		message(opUnlink, 1, text("new")), message(opRmdir, 1, text("d")), message(opReadlink, 3),
		message(opTmpfile, 1, u32(unix.O_RDWR), u32(0o600), u32(0), u32(0), text("/")),
	)
	var all [][]byte
	for _, m := range [][]byte{
		entry,
		message(opRead, 2, u64(1), u64(0), u32(100), make([]byte, 20)),
		message(opWrite, 2, u64(1), u64(0), u32(1), u32(0), u64(0), u32(0), u32(0), []byte("x")),
		message(opReaddirplus, 1, u64(2), u64(0), u32(1000), make([]byte, 20)),
		message(opSetattr, 2, u32(setMode|setSize|setAtimeNow|setMtime), make([]byte, 84)),
		message(opSetattr, 3, u32(setUID|setGID|setMtime), make([]byte, 84)),
		message(opSetxattr, 3, u32(1), u32(0), u64(0), text("user.a"), []byte("v")),
		message(opGetxattr, 2, u64(100), text("user.a")), message(opListxattr, 2, u64(100)),
		message(opRemovexattr, 2, text("user.a")), message(opStatx, 2, make([]byte, 24)), message(opStatfs, 2),
		message(opSetlkw, 2, lockArgs(1, 1, 0, 10, 1, 0)), message(opGetlk, 2, lockArgs(1, 2, 0, 10, 1, 0)),
		message(opFlush, 2, u64(1), u64(0), u64(1)), message(opRelease, 2, u64(1), make([]byte, 16)),
		message(opLseek, 2, u64(1), u64(0), u32(unix.SEEK_HOLE), u32(0)),
		message(opCopyFileRange, 2, u64(1), u64(0), u64(2), u64(1), u64(100), u64(10), u64(0)),
		message(opForget, 2, u64(1)), message(opBatchForget, 0, u32(1), u32(0), u64(2), u64(1)),
		message(opFsync, 2, u64(1), u64(0)), message(opInterrupt, 0, u64(4)), message(opDestroy, 0),
	} {
		all = append(all, slices.Concat(first, m))
	}
	return all
}
