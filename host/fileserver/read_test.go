package fileserver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "what the file says")
	c := newClient(t, dir, nil)
	node := c.lookup(rootID, "file")
	if again := c.lookup(rootID, "file"); again != node {
		t.Errorf("the same file is node %d and then %d", node, again)
	}
	attr := c.must(opGetattr, node, make([]byte, 16))[16:]
	if size := order.Uint64(attr[8:]); size != 18 {
		t.Errorf("size %d", size)
	}
	fh := c.open(node, unix.O_RDONLY)
	read := func(offset uint64, size uint32) string {
		return string(c.must(opRead, node, u64(fh), u64(offset), u32(size), make([]byte, 20)))
	}
	for _, step := range []struct {
		offset uint64
		size   uint32
		want   string
	}{{0, 4, "what"}, {5, 100, "the file says"}, {18, 10, ""}, {1 << 40, 10, ""}} {
		if got := read(step.offset, step.size); got != step.want {
			t.Errorf("read(%d, %d): %q, want %q", step.offset, step.size, got, step.want)
		}
	}
	c.must(opRelease, node, u64(fh), make([]byte, 16))
	c.refused(unix.EBADF, opRead, node, u64(fh), u64(0), u32(10), make([]byte, 20))
	c.refused(unix.EBADF, opRelease, node, u64(fh), make([]byte, 16))
}

// list reads a directory to its end by answers of size bytes.
func (c *client) list(opcode uint32, node uint64, size uint32) (names []string) {
	c.t.Helper()
	fh := order.Uint64(c.must(opOpendir, node, u32(0), u32(0)))
	defer c.must(opReleasedir, node, u64(fh), make([]byte, 16))
	for offset := uint64(0); ; {
		answer := c.must(opcode, node, u64(fh), u64(offset), u32(size), make([]byte, 20))
		if len(answer) == 0 {
			return names
		}
		for len(answer) > 0 {
			if opcode == opReaddirplus {
				if id := order.Uint64(answer); id != 0 {
					c.server.Handle(c.request(opForget, id, u64(1)), nil)
				}
				answer = answer[entrySize:]
			}
			offset = order.Uint64(answer[8:])
			length := order.Uint32(answer[16:])
			names = append(names, string(answer[direntSize:direntSize+length]))
			answer = answer[direntSize+(length+7)&^7:]
		}
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	want := []string{".", ".."}
	for i := range 400 {
		name := fmt.Sprintf("%s-%d", strings.Repeat("n", i%200), i)
		write(t, filepath.Join(dir, name), "")
		want = append(want, name)
	}
	slices.Sort(want)
	c := newClient(t, dir, nil)
	for _, opcode := range []uint32{opReaddir, opReaddirplus} {
		for _, size := range []uint32{512, 4096, 1 << 20} {
			names := c.list(opcode, rootID, size)
			slices.Sort(names)
			if !slices.Equal(names, want) {
				t.Errorf("operation %d by %d bytes: %d names, want %d", opcode, size, len(names), len(want))
			}
		}
	}
	if left := len(c.server.nodes.byID); left != 1 {
		t.Errorf("%d nodes are left, want the root's", left)
	}
}

// What is no regular file and no directory is seen, but never opened.
func TestSpecialFilesStayClosed(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, dir, nil)
	c.refused(unix.ENXIO, opOpen, c.lookup(rootID, "fifo"), u32(unix.O_RDONLY), u32(0))
	link := c.lookup(rootID, "link")
	c.refused(unix.ELOOP, opOpen, link, u32(unix.O_RDONLY), u32(0))
	c.refused(unix.ENOTDIR, opLookup, link, text("name"))
	c.refused(unix.ENOTDIR, opOpendir, link, u32(0), u32(0))
	if target := string(c.must(opReadlink, link)); target != "/etc/passwd" {
		t.Errorf("target %q", target)
	}
}

func TestNamesThatLeadElsewhere(t *testing.T) {
	c := newClient(t, t.TempDir(), nil)
	for _, name := range []string{"", ".", "..", "a/b", "/", "/etc", "../etc", "a/"} {
		c.refused(unix.EINVAL, opLookup, rootID, text(name))
	}
	c.refused(unix.ENAMETOOLONG, opLookup, rootID, text(strings.Repeat("n", 256)))
	c.refused(unix.ENOENT, opLookup, rootID, text("absent"))
	c.refused(unix.ESTALE, opLookup, 77, text("absent"))
	c.refused(unix.EINVAL, opLookup, rootID, []byte("no end"))
}
