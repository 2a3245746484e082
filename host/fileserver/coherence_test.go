package fileserver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCoherence: what one side has done the other sees at once.
func TestCoherence(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	mounted, _, source := beside(t, Export{})
	sides := []string{mounted, source}
	for i := range 100 {
		here, there := sides[i%2], sides[1-i%2]
		name := fmt.Sprint("file", i)
		content := fmt.Sprint("content ", i)
		write(t, filepath.Join(here, name), content)
		read := func(name string) string {
			b, err := os.ReadFile(filepath.Join(there, name))
			if err != nil {
				return errorName(err)
			}
			return string(b)
		}
		if got := read(name); got != content {
			t.Fatalf("%d: %q, want %q", i, got, content)
		}
		write(t, filepath.Join(here, name), content+" more")
		if got := read(name); got != content+" more" {
			t.Fatalf("%d: %q after a write", i, got)
		}
		if err := os.Chmod(filepath.Join(here, name), 0o600); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(there, name)); err != nil || info.Mode() != 0o600 {
			t.Fatalf("%d: %v %v after a chmod", i, info, err)
		}
		if err := os.Rename(filepath.Join(here, name), filepath.Join(here, "moved")); err != nil {
			t.Fatal(err)
		}
		if got := read(name); got != "ENOENT" {
			t.Fatalf("%d: %q after a rename", i, got)
		}
		if got := read("moved"); got != content+" more" {
			t.Fatalf("%d: %q of the new name", i, got)
		}
		if err := os.Remove(filepath.Join(here, "moved")); err != nil {
			t.Fatal(err)
		}
		if got := read("moved"); got != "ENOENT" {
			t.Fatalf("%d: %q after a removal", i, got)
		}
	}
}

// Both sides append to one file: nothing is written over.
func TestAppendFromBothSides(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	mounted, _, source := beside(t, Export{})
	done := make(chan error, 2)
	const lines = 500
	for _, side := range []string{mounted, source} {
		go func() {
			f, err := os.OpenFile(filepath.Join(side, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
			for i := 0; i < lines && err == nil; i++ {
				_, err = f.WriteString("line\n")
			}
			f.Close()
			done <- err
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for _, side := range []string{mounted, source} {
		if info, err := os.Stat(filepath.Join(side, "log")); err != nil || info.Size() != 2*lines*5 {
			t.Errorf("%v %v, want %d bytes", info.Size(), err, 2*lines*5)
		}
	}
}

// Names below the mount are those of the directory, however many.
func TestManyEntries(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	mounted, _, source := beside(t, Export{})
	count := 3000
	if _, err := fmt.Sscan(os.Getenv("HUSK_TEST_FILESERVER_ENTRIES"), &count); err == nil { // by hand
		t.Logf("%d entries", count)
	}
	for i := range count {
		fd, err := unix.Open(filepath.Join(source, fmt.Sprint("entry", i)), unix.O_CREAT|unix.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	names := func(dir string) (names []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || !info.Mode().IsRegular() {
				t.Fatalf("%s: %v %v", e.Name(), info, err)
			}
			names = append(names, e.Name())
		}
		return names
	}
	if got, want := names(mounted), names(source); !slices.Equal(got, want) || len(got) != count {
		t.Errorf("%d names, want %d", len(got), len(want))
	}
	if err := os.RemoveAll(mounted + "/."); err == nil {
		t.Error("the root was removed")
	}
	for _, name := range names(mounted) {
		if err := unix.Unlink(filepath.Join(mounted, name)); err != nil {
			t.Fatal(err)
		}
	}
	if left := names(source); len(left) != 0 {
		t.Errorf("%d are left", len(left))
	}
}

// A mount below the root is entered, and told apart by the flag of a submount.
func TestSubmounts(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("husk-test", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(sub, unix.MNT_DETACH)
	write(t, filepath.Join(sub, "file"), "content")
	write(t, filepath.Join(dir, "file"), "content")
	c := newClient(t, dir, nil)
	flags := func(parent uint64, name string) (node uint64, flags uint32) {
		entry := c.must(opLookup, parent, text(name))
		return order.Uint64(entry), order.Uint32(entry[entrySize-4:])
	}
	node, got := flags(rootID, "sub")
	if got != attrSubmount {
		t.Errorf("the mount's root has flags %#x", got)
	}
	for _, parent := range []uint64{rootID, node} {
		if _, got := flags(parent, "file"); got != 0 {
			t.Errorf("a file has flags %#x", got)
		}
	}
	c.refused(unix.EXDEV, opRename, rootID, u64(node), text("file"), text("moved"))
	c.refused(unix.EBUSY, opRmdir, rootID, text("sub"))
	if names := c.list(opReaddirplus, node, 4096); len(names) != 3 {
		t.Errorf("in the mount: %q", names)
	}
}

// Ids go through the maps, both ways, also those in ACLs.
func TestIDMaps(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("gives files to others: needs root")
	}
	dir := t.TempDir()
	c := newClient(t, dir, func(e *Export) {
		e.UIDs = []IDRange{{Guest: 0, Host: 100000, Count: 1000}}
		e.GIDs = []IDRange{{Guest: 0, Host: 200000, Count: 1000}}
	})
	if err := os.Chown(dir, 100000, 200000); err != nil {
		t.Fatal(err)
	}
	c.uid, c.gid = 5, 6
	entry := c.must(opMkdir, rootID, u32(0o755), u32(0), text("dir"))
	node, attr := order.Uint64(entry), entry[entrySize-attrSize:]
	if uid, gid := order.Uint32(attr[68:]), order.Uint32(attr[72:]); uid != 5 || gid != 6 {
		t.Errorf("the client sees %d:%d", uid, gid)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "dir"), &st); err != nil || st.Uid != 100005 || st.Gid != 200006 {
		t.Errorf("the host sees %d:%d, %v", st.Uid, st.Gid, err)
	}
	value := aclOf([3]uint32{1, 6, noID}, [3]uint32{2, 4, 7}, [3]uint32{4, 0, noID}, [3]uint32{8, 4, 8}, [3]uint32{0x10, 4, noID}, [3]uint32{0x20, 0, noID})
	set := func(value []byte) (unix.Errno, []byte) {
		return c.try(opSetxattr, node, u32(uint32(len(value))), u32(0), u64(0), text(accessACL), value)
	}
	if errno, _ := set(value); errno != 0 {
		t.Fatal(errno)
	}
	if got := c.must(opGetxattr, node, u64(100), text(accessACL)); string(got) != string(value) {
		t.Errorf("the client sees %x", got)
	}
	b := make([]byte, 100)
	n, err := unix.Getxattr(filepath.Join(dir, "dir"), accessACL, b)
	if err != nil || order.Uint32(b[4+8+4:]) != 100007 || order.Uint32(b[4+3*8+4:]) != 200008 {
		t.Errorf("the host sees %x, %v", b[:max(n, 0)], err)
	}
	c.uid = 1000
	c.refused(unix.EOVERFLOW, opMkdir, rootID, u32(0o755), u32(0), text("not mapped"))
	c.refused(unix.EINVAL, opSetattr, node, u32(setUID), make([]byte, 72), u32(5000), make([]byte, 8))
	if errno, _ := set(aclOf([3]uint32{2, 4, 5000})); errno != unix.EINVAL {
		t.Errorf("an ACL of one who is not mapped: %v", errno)
	}
	if err := os.Chown(filepath.Join(dir, "dir"), 0, 0); err != nil {
		t.Fatal(err)
	}
	attr = c.must(opGetattr, node, make([]byte, 16))[16:]
	if uid, gid := order.Uint32(attr[68:]), order.Uint32(attr[72:]); uid != overflowID || gid != overflowID {
		t.Errorf("the client sees the host's root as %d:%d", uid, gid)
	}
}
