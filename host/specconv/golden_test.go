package specconv

import (
	"bytes"
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

// testHost is a host on which every path is a directory unless it is listed.
type testHost struct {
	files   map[string]File
	missing string // prefix of paths that do not exist
	tmpfs   map[string]uint64
	devices map[string]bool // those the host has a driver for, "c 10:232"
}

func (h testHost) Stat(path string) (File, error) {
	if h.missing != "" && strings.HasPrefix(path, h.missing) {
		return File{}, &fs.PathError{Op: "stat", Path: path, Err: syscall.ENOENT}
	}
	if f, ok := h.files[path]; ok {
		return f, nil
	}
	switch filepath.Base(path) {
	case "hosts", "hostname", "resolv.conf", ".containerenv", "etc-hosts", "single", "0":
		return File{}, nil
	}
	return File{Type: fs.ModeDir}, nil
}

func (h testHost) RealPath(path string) (string, error) {
	return strings.ReplaceAll(path, "/symlink", "/target"), nil
}

func (h testHost) Filesystem(path string) (Filesystem, error) {
	if path == "/srv/broken" {
		return Filesystem{}, &fs.PathError{Op: "statfs", Path: path, Err: syscall.EIO}
	}
	size, ok := h.tmpfs[path]
	return Filesystem{Tmpfs: ok, SizeBytes: size}, nil
}

func (h testHost) UserNamespace(path string) (*IDMaps, error) {
	if path != "/run/userns" {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return &IDMaps{
		UID: []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}},
		GID: []specs.LinuxIDMapping{{HostID: 200000, Size: 1000}, {ContainerID: 1000, HostID: 1000, Size: 1}},
	}, nil
}

func (h testHost) HasDevice(kind string, major, minor int64) bool {
	return kind == "b" && major == 252 || h.devices[deviceKey(kind, major, minor)]
}

func deviceKey(kind string, major, minor int64) string {
	b, _ := json.Marshal([]any{kind, major, minor})
	return string(b)
}

const charDevice = fs.ModeDevice | fs.ModeCharDevice

func testEnv() Env {
	const id = "4f1c0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
	return Env{
		ID: "c1", Bundle: "/bundle", MemoryMiB: 16000, CPUs: 8,
		Host: testHost{
			missing: "/nosuch",
			files: map[string]File{
				"/dev/null":        {Type: charDevice, Major: 1, Minor: 3},
				"/dev/kvm":         {Type: charDevice, Major: 10, Minor: 232},
				"/dev/sda":         {Type: fs.ModeDevice, Major: 8},
				"/run/docker.sock": {Type: fs.ModeSocket},
				"/run/fifo":        {Type: fs.ModeNamedPipe},
				"/run/irregular":   {Type: fs.ModeIrregular},
				"/bundle/file":     {},
			},
			tmpfs: map[string]uint64{
				"/var/lib/containers/storage/overlay-containers/" + id + "/userdata/shm": 65536000,
				"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/b00b/shm":           64 << 20,
				"/run/unlimited": 0,
			},
			devices: map[string]bool{
				deviceKey("c", 1, 3):    true,
				deviceKey("c", 1, 7):    true,
				deviceKey("c", 1, 9):    true,
				deviceKey("c", 10, 232): true,
				deviceKey("b", 8, 0):    true,
				deviceKey("b", 1, 3):    true,
			},
		},
	}
}

func readSpec(t *testing.T, name string) *specs.Spec {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := decode(b)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// TestGolden converts whole configs, among them those that engines write, and compares the
// plans with files. `go test -update` writes the files: read the diff.
func TestGolden(t *testing.T) {
	configs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(configs) < 7 {
		t.Fatalf("configs in testdata: %d, %v", len(configs), err)
	}
	for _, config := range configs {
		name := filepath.Base(config)
		t.Run(strings.TrimSuffix(name, ".json"), func(t *testing.T) {
			spec := readSpec(t, name)
			before, _ := json.Marshal(spec)
			plan, err := Convert(testEnv(), spec)
			if err != nil {
				t.Fatal(err)
			}
			if after, _ := json.Marshal(spec); !bytes.Equal(before, after) {
				t.Error("the spec it was given has changed")
			}
			checkPlan(t, plan)
			compareGolden(t, strings.TrimSuffix(config, ".json")+".golden", plan)
		})
	}
}

func compareGolden(t *testing.T, golden string, v any) {
	t.Helper()
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		g, w := strings.Split(got.String(), "\n"), strings.Split(string(want), "\n")
		for i := range min(len(g), len(w)) {
			if g[i] != w[i] {
				t.Fatalf("%s, line %d:\n got %s\nwant %s", golden, i+1, g[i], w[i])
			}
		}
		t.Fatalf("%s: got %d lines, want %d", golden, len(g), len(w))
	}
}

// TestExample compares husk's example with what runc 1.1.5 writes, except for the name, the
// version, and the ambient capabilities, which runc 1.2 has dropped.
func TestExample(t *testing.T) {
	want := readSpec(t, "runc-spec.json")
	want.Version, want.Hostname = specs.Version, "husk"
	want.Process.Capabilities.Ambient = nil
	got, _ := json.Marshal(Example())
	wanted, _ := json.Marshal(want)
	if !bytes.Equal(got, wanted) {
		t.Errorf("got  %s\nwant %s", got, wanted)
	}
	if _, err := Convert(testEnv(), Example()); err != nil {
		t.Error(err)
	}
}
