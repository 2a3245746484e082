package fileserver

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A client may know more inodes than the server holds open. The others are found again, and
// are the same or are refused.
func TestMoreInodesThanDescriptors(t *testing.T) {
	dir := t.TempDir()
	const dirs, files, limit = 10, 20, 8
	for i := range dirs {
		sub := filepath.Join(dir, fmt.Sprint("dir", i), "below")
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		for j := range files {
			write(t, filepath.Join(sub, fmt.Sprint("file", j)), fmt.Sprint(i, j))
		}
	}
	c := newClient(t, dir, func(e *Export) { e.Limits.Descriptors = limit })
	var nodes, subs [dirs]uint64
	var file [dirs][files]uint64
	for i := range dirs {
		nodes[i] = c.lookup(rootID, fmt.Sprint("dir", i))
		subs[i] = c.lookup(nodes[i], "below")
		for j := range files {
			file[i][j] = c.lookup(subs[i], fmt.Sprint("file", j))
		}
	}
	if n := countDescriptors(t, dir); n > limit+1 {
		t.Errorf("%d descriptors, want %d and the root's", n, limit)
	}
	content := func(node uint64) string {
		errno, answer := c.try(opOpen, node, u32(0), u32(0))
		if errno != 0 {
			return errorName(errno)
		}
		fh := order.Uint64(answer)
		defer c.must(opRelease, node, u64(fh), make([]byte, 16))
		return string(c.must(opRead, node, u64(fh), u64(0), u32(100), make([]byte, 20)))
	}
	for i := range dirs {
		for j := range files {
			if got := content(file[i][j]); got != fmt.Sprint(i, j) {
				t.Fatalf("file %d %d: %q", i, j, got)
			}
		}
	}

	// Renamed by the client, a directory above: found.
	c.must(opRename, rootID, u64(nodes[1]), text("dir0"), text("moved"))
	if got := content(file[0][5]); got != "0 5" {
		t.Errorf("below a renamed directory: %q", got)
	}
	for _, n := range file[9] { // closes the others
		content(n)
	}
	// Renamed by the host: stale, until looked up again.
	below := filepath.Join(dir, "dir2", "below")
	if err := os.Rename(filepath.Join(below, "file3"), filepath.Join(below, "renamed")); err != nil {
		t.Fatal(err)
	}
	if got := content(file[2][3]); got != "ESTALE" {
		t.Errorf("renamed: %q", got)
	}
	if again := c.lookup(subs[2], "renamed"); again != file[2][3] {
		t.Errorf("renamed: node %d, was %d", again, file[2][3])
	}
	if got := content(file[2][3]); got != "2 3" {
		t.Errorf("looked up again: %q", got)
	}
	for _, n := range file[9] {
		content(n)
	}
	// Another file of that name is not taken for it.
	if err := os.Remove(filepath.Join(below, "file4")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(below, "file4"), "another")
	if got := content(file[2][4]); got != "ESTALE" {
		t.Errorf("replaced: %q", got)
	}
	if again := c.lookup(subs[2], "file4"); again == file[2][4] {
		t.Errorf("another file is node %d too", again)
	}
	// Nor is what a symbolic link leads to.
	if err := os.Remove(filepath.Join(below, "file6")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file7", filepath.Join(below, "file6")); err != nil {
		t.Fatal(err)
	}
	for _, n := range file[9] {
		content(n)
	}
	if got := content(file[2][6]); got != "ESTALE" {
		t.Errorf("a link: %q", got)
	}
	// Open files are not closed.
	fh := c.open(file[3][3], unix.O_RDONLY)
	for _, n := range file[9] {
		content(n)
	}
	os.Remove(filepath.Join(dir, "dir3", "below", "file3"))
	if got := string(c.must(opRead, file[3][3], u64(fh), u64(0), u32(100), make([]byte, 20))); got != "3 3" {
		t.Errorf("an open file: %q", got)
	}
	c.must(opGetattr, file[3][3], make([]byte, 16))
	c.server.Close()
	if n := countDescriptors(t, dir); n != 0 {
		t.Errorf("%d descriptors are left", n)
	}
}
