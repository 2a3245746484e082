package fileserver

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A file that the host makes between the client's look-up and its CREATE is not opened: whether
// the process may has not been decided. ESTALE has the client's kernel look again.
func TestCreateOfWhatHasCome(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "the host's")
	c := newClient(t, dir, nil)
	create := func(name string, flags uint32) (unix.Errno, []byte) {
		return c.try(opCreate, rootID, u32(flags), u32(0o640), u32(0o022), u32(0), text(name))
	}
	for flags, want := range map[uint32]unix.Errno{
		unix.O_CREAT | unix.O_RDWR:                unix.ESTALE,
		unix.O_CREAT | unix.O_RDWR | unix.O_TRUNC: unix.ESTALE,
		unix.O_CREAT | unix.O_RDWR | unix.O_EXCL:  unix.EEXIST,
	} {
		if errno, _ := create("file", flags); errno != want {
			t.Errorf("create with %#x: %v, want %v", flags, errno, want)
		}
	}
	if err := os.Symlink("/etc/made-by-a-guest", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if errno, _ := create("link", unix.O_CREAT|unix.O_RDWR); errno != unix.ESTALE {
		t.Errorf("create through a link: %v", errno)
	}
	if content, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(content) != "the host's" {
		t.Errorf("%q, %v", content, err)
	}
	if n := len(c.server.nodes.byID) + len(c.server.handles.byID); n != 1 {
		t.Errorf("%d nodes and handles are left", n)
	}
}

// What is appended goes to the end as it is on the host, wherever the client took it to be;
// a page that is written back goes to its place.
func TestAppendGoesToTheEnd(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	write(t, path, "one ")
	c := newClient(t, dir, nil)
	node := c.lookup(rootID, "log")
	fh := c.open(node, unix.O_RDWR|unix.O_APPEND)
	send := func(text string, flags, how uint32) {
		c.must(opWrite, node, u64(fh), u64(0), u32(uint32(len(text))), u32(how), u64(0), u32(flags), u32(0), []byte(text))
	}
	if err := appendTo(path, "two "); err != nil {
		t.Fatal(err)
	}
	send("three", unix.O_APPEND, 0)
	send("ONE", 0, 0) // F_SETFL has taken O_APPEND away
	if content, err := os.ReadFile(path); err != nil || string(content) != "ONE two three" {
		t.Errorf("%q, %v", content, err)
	}
	send("1ne", unix.O_APPEND, writeCache)
	if content, err := os.ReadFile(path); err != nil || string(content) != "1ne two three" {
		t.Errorf("%q, %v", content, err)
	}
}
