package detached

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNothingAbove: nothing above the directory can be reached. It fails with an ordinary
// os.Open.
func TestNothingAbove(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("clones a mount: needs root")
	}
	dir := t.TempDir()
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{"beside": "beside", "inner/file": "inside"} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Open(inner)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for path, want := range map[string]error{
		"file": nil, "../beside": unix.ENOENT, "../../../../../../../etc/passwd": unix.ENOENT, "..": nil, "../file": nil,
	} {
		fd, err := unix.Openat(int(f.Fd()), path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		if err != want { //nolint:errorlint // plain numbers
			t.Errorf("open %s: %v, want %v", path, err, want)
		}
	}
	// It is the same directory, so a file made in it is visible outside.
	if err := unix.Mkdirat(int(f.Fd()), "made", 0o700); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(inner, "made")); err != nil {
		t.Error(err)
	}
}
