package specconv

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		bundle := filepath.Join(dir, name)
		if err := os.MkdirAll(bundle, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return bundle
	}
	empty, fifo := filepath.Join(dir, "empty"), filepath.Join(dir, "fifo")
	for _, d := range []string{empty, fifo} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(fifo, "config.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, bundle, want string }{
		{"no bundle", dir + "/none", "chdir " + dir + "/none: no such file or directory"},
		{"bundle is a file", write("f", "") + "/config.json", "not a directory"},
		{"no config", empty, "JSON specification file config.json not found"},
		{"fifo", fifo, "is not a regular file"},
		{"not JSON", write("bad", "{bad"), "invalid character 'b' looking for beginning of object key string"},
		{"empty file", write("nothing", ""), "unexpected end of JSON input"},
		{"trailing data", write("trail", `{"ociVersion":"1.0.0"} x`), "invalid character 'x' after top-level value"},
		{"wrong type", write("type", `{"process":{"args":"sh"}}`), "process.args of type []string"},
		{"negative uid", write("uid", `{"process":{"user":{"uid":-1}}}`), "process.user.uid of type uint32"},
		{"not an object", write("list", `[]`), "array"},
		{"too large", write("big", `{"x":"`+strings.Repeat("a", maxConfigBytes)+`"}`), "larger than 16 MiB"},
		{"too deep", write("deep", strings.Repeat(`{"process":`, 20000)), "exceeded max depth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(c.bundle)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q in it", err, c.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %v", err)
			}
		})
	}
	spec, err := Load(write("good", `{"ociVersion":"1.3.0","unknown":1}`))
	if err != nil || spec.Version != "1.3.0" {
		t.Errorf("good config: %v, %v", spec, err)
	}
}

func TestLoadProcess(t *testing.T) {
	dir := t.TempDir()
	write := func(content string) string {
		path := filepath.Join(dir, "process.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	p, err := LoadProcess(write(`{"args":["sh","-c","x"],"cwd":"/","user":{"uid":5,"gid":6}}`))
	if err != nil || len(p.Args) != 3 || p.User.GID != 6 {
		t.Errorf("good process: %+v, %v", p, err)
	}
	for _, c := range []struct{ path, want string }{
		{dir + "/none", "read process: open " + dir + "/none: no such file or directory"},
		{dir, "is a directory"},
		{write(`{"args":"sh"}`), "args of type []string"},
	} {
		if _, err := LoadProcess(c.path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", c.path, err, c.want)
		}
	}
	// A pipe, as bash's <(...) makes one.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString(`{"args":["true"]}`); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err := LoadProcess("/proc/self/fd/" + strconv.Itoa(int(r.Fd()))); err != nil || len(p.Args) != 1 {
		t.Errorf("process from a pipe: %+v, %v", p, err)
	}
}

// TestThisHost asks this machine through the Host that husk uses.
func TestThisHost(t *testing.T) {
	h := thisHost{}
	dir := t.TempDir()
	fifo, file := filepath.Join(dir, "fifo"), filepath.Join(dir, "file")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]File{
		dir: {Type: fs.ModeDir}, file: {}, fifo: {Type: fs.ModeNamedPipe},
		"/dev/null": {Type: charDevice, Major: 1, Minor: 3},
	} {
		if got, err := h.Stat(path); err != nil || got != want {
			t.Errorf("stat %s: got %v, %v, want %v", path, got, err, want)
		}
	}
	_, err := h.Stat(dir + "/none")
	if !errors.Is(err, fs.ErrNotExist) || err.Error() != "stat "+dir+"/none: no such file or directory" {
		t.Errorf("stat of a missing file: %v", err)
	}
	if f, err := h.Filesystem("/proc"); err != nil || f.Tmpfs {
		t.Errorf("filesystem of /proc: %v, %v", f, err)
	}
	if f, err := h.Filesystem("/dev/shm"); err != nil || !f.Tmpfs {
		t.Errorf("filesystem of /dev/shm: %v, %v", f, err)
	}
	if _, err := h.Filesystem(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("filesystem of a missing file: %v", err)
	}
	if !h.HasDevice("c", 1, 3) || h.HasDevice("b", 4000, 4000) {
		t.Error("has device: /dev/null is missing, or a block device 4000:4000 is there")
	}
}
