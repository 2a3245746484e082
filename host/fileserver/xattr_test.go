package fileserver

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Extended attributes by either kind of the kernel's calls; that the newer exist is not said.
func TestXattrCalls(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "x")
	if err := unix.Setxattr(filepath.Join(dir, "file"), "user.probe", nil, 0); err != nil {
		t.Skipf("no extended attributes on %s: %v", dir, err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, dir, nil)
	for _, newer := range []bool{c.server.xattrAt, false} {
		c.server.xattrAt = newer
		node := c.lookup(rootID, "file")
		set := func(flags uint32) (unix.Errno, []byte) {
			return c.try(opSetxattr, node, u32(5), u32(flags), u64(0), text("user.a"), []byte("value"))
		}
		if errno, _ := set(unix.XATTR_REPLACE); errno != unix.ENODATA {
			t.Errorf("replace: %v", errno)
		}
		if errno, _ := set(unix.XATTR_CREATE); errno != 0 {
			t.Errorf("create: %v", errno)
		}
		if got := string(c.must(opGetxattr, node, u64(100), text("user.a"))); got != "value" {
			t.Errorf("value %q", got)
		}
		if got := order.Uint32(c.must(opGetxattr, node, u64(0), text("user.a"))); got != 5 {
			t.Errorf("size %d", got)
		}
		c.refused(unix.ERANGE, opGetxattr, node, u64(4), text("user.a"))
		list := string(c.must(opListxattr, node, u64(100)))
		if want := "user.probe\x00user.a\x00"; list != want && list != "user.a\x00user.probe\x00" {
			t.Errorf("list %q", list)
		}
		c.refused(unix.ERANGE, opListxattr, node, u64(4))
		c.must(opRemovexattr, node, text("user.a"))
		c.refused(unix.ENODATA, opGetxattr, node, u64(100), text("user.a"))
		for _, name := range []string{"fifo", "link"} { // the inode itself, not what a link leads to
			c.refused(unix.EPERM, opSetxattr, c.lookup(rootID, name), u32(5), u32(0), u64(0), text("user.a"), []byte("value"))
		}
	}
	off := newClient(t, dir, func(e *Export) { e.NoXattr = true })
	off.refused(unix.EOPNOTSUPP, opGetxattr, off.lookup(rootID, "file"), u64(100), text("user.probe"))
	off.refused(unix.EOPNOTSUPP, opListxattr, off.lookup(rootID, "file"), u64(100))
}
