package install

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const binary = "/usr/local/bin/husk"

// TestAddAndRemove: other content stays, adding again changes nothing, and removing removes
// what was added.
func TestAddAndRemove(t *testing.T) {
	for name, tc := range map[string]struct {
		engine string
		old    string // "-": no file
		after  string // lines that it must contain
		undone string
	}{
		"docker without a file":    {"docker", "-", "{\n  \"runtimes\": {\n    \"husk\": {\n      \"path\": \"/usr/local/bin/husk\"\n    }\n  }\n}\n", "{}\n"},
		"docker with an empty one": {"docker", "\n", "{\n  \"runtimes\": {\n    \"husk\": {\n      \"path\": \"/usr/local/bin/husk\"\n    }\n  }\n}\n", "{}\n"},
		"docker keeps the rest and its order": {
			"docker",
			"{\n  \"storage-driver\": \"overlay2\",\n  \"runtimes\": {\n    \"crun\": {\n      \"path\": \"/usr/bin/crun\"\n    }\n  },\n  \"debug\": true\n}\n",
			"{\n  \"storage-driver\": \"overlay2\",\n  \"runtimes\": {\n    \"crun\": {\n      \"path\": \"/usr/bin/crun\"\n    },\n    \"husk\": {\n      \"path\": \"/usr/local/bin/husk\"\n    }\n  },\n  \"debug\": true\n}\n",
			"{\n  \"storage-driver\": \"overlay2\",\n  \"runtimes\": {\n    \"crun\": {\n      \"path\": \"/usr/bin/crun\"\n    }\n  },\n  \"debug\": true\n}\n",
		},
		"docker with an older husk": {
			"docker", `{"runtimes":{"husk":{"path":"/old","runtimeArgs":["--debug"]},"x":{"path":"/x"}}}`,
			"{\n  \"runtimes\": {\n    \"husk\": {\n      \"path\": \"/usr/local/bin/husk\",\n      \"runtimeArgs\": [\"--debug\"]\n    },\n    \"x\": {\n      \"path\": \"/x\"\n    }\n  }\n}\n",
			"{\n  \"runtimes\": {\n    \"x\": {\n      \"path\": \"/x\"\n    }\n  }\n}\n",
		},
		"podman": {"podman", "-", podmanHeader + "[engine]\n# The runtimes whose error messages podman reads from their log; the others are its\n# own default.\nruntime_supports_json = [\"crun\", \"runc\", \"kata\", \"runsc\", \"youki\", \"krun\", \"husk\"]\n\n[engine.runtimes]\nhusk = [\"/usr/local/bin/husk\"]\n", "-"},
		"containerd without a file": {
			"containerd", "-",
			"version = 2\n\n" + blockBegin + "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk]\n  runtime_type = \"io.containerd.runc.v2\"\n  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk.options]\n    BinaryName = \"/usr/local/bin/husk\"\n" + blockEnd,
			"version = 2\n",
		},
		"containerd keeps the rest, comments and all": {
			"containerd", "# mine\nversion = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2' # as ever\n",
			"# mine\nversion = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2' # as ever\n\n" + blockBegin + "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.husk]\n  runtime_type = \"io.containerd.runc.v2\"\n  [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.husk.options]\n    BinaryName = \"/usr/local/bin/husk\"\n" + blockEnd,
			"# mine\nversion = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2' # as ever\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "etc", "file")
			if tc.old != "-" {
				put(t, file, tc.old)
			}
			e := Find(tc.engine)
			apply(t, file, must(e.Add(file, binary)), tc.after)
			if c := must(e.Add(file, binary)); !c.Nothing() {
				t.Errorf("a second time changes the file to\n%s", c.After)
			}
			apply(t, file, must(e.Remove(file)), tc.undone)
			if c := must(e.Remove(file)); !c.Nothing() {
				t.Errorf("a second removal changes the file to\n%s", c.After)
			}
		})
	}
}

// TestRefuse: a file that is invalid, or would become so, is not changed.
func TestRefuse(t *testing.T) {
	for name, tc := range map[string]struct{ engine, old, add, remove string }{
		"no JSON":                     {"docker", "{", "not a JSON object", "not a JSON object"},
		"no object":                   {"docker", "[]", "not a JSON object", "not a JSON object"},
		"runtimes of another kind":    {"docker", `{"runtimes":[]}`, "not an object", "not an object"},
		"the default":                 {"docker", `{"default-runtime":"husk","runtimes":{"husk":{"path":"/usr/local/bin/husk"}}}`, "", "default-runtime"},
		"somebody else's husk.conf":   {"podman", "[engine]\n", "was not written by husk", "was not written by husk"},
		"containerd version 1":        {"containerd", "root = \"/x\"\n", "version 0", ""},
		"no TOML":                     {"containerd", "version = \n", "not what containerd reads", ""},
		"a husk of somebody else's":   {"containerd", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk]\n", "did not write", ""},
		"half of what was once added": {"containerd", "version = 2\n" + blockBegin, "remove by hand", "remove by hand"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "file")
			put(t, file, tc.old)
			_, err := Find(tc.engine).Add(file, binary)
			want(t, "add", err, tc.add)
			_, err = Find(tc.engine).Remove(file)
			want(t, "remove", err, tc.remove)
		})
	}
}

// TestApplyKeeps: Apply follows a link, keeps the mode and makes a copy.
func TestApplyKeeps(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	put(t, real, "{}")
	if err := os.Chmod(real, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	c := must(Find("docker").Add(link, binary))
	backup, err := c.Apply(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	if backup != real+".before-husk-20260102T030405" || read(t, backup) != "{}" {
		t.Errorf("copy %s: %q", backup, read(t, backup))
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v", err)
	}
	for _, path := range []string{real, backup} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
	if !strings.Contains(read(t, real), binary) {
		t.Errorf("not written: %s", read(t, real))
	}
}

func must(c *Change, err error) *Change {
	if err != nil {
		panic(err)
	}
	return c
}

func apply(t *testing.T, file string, c *Change, want string) {
	t.Helper()
	if _, err := c.Apply(time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	if want == "-" {
		if _, err := os.Stat(file); !os.IsNotExist(err) {
			t.Errorf("the file is there: %v", err)
		}
		return
	}
	if got := read(t, file); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func want(t *testing.T, verb string, err error, text string) {
	t.Helper()
	if text == "" && err == nil {
		return
	}
	if err == nil || text == "" || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want %q", verb, err, text)
	}
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func FuzzAddContainerd(f *testing.F) {
	f.Add([]byte("version = 2\n"))
	f.Add([]byte("version = 3\n# x\n[plugins]\n"))
	f.Fuzz(func(t *testing.T, old []byte) {
		added, err := addContainerd(old, binary)
		if err != nil {
			return
		}
		removed, err := removeContainerd(added)
		if err != nil || len(bytes.TrimSpace(old)) > 0 && !bytes.HasPrefix(removed, old) && !bytes.Contains(old, []byte(blockBegin)) {
			t.Errorf("%q became %q: %v", old, removed, err)
		}
	})
}

// FuzzAddDocker: whatever the file contains, what was added is found again, and the engine can
// still read the file.
func FuzzAddDocker(f *testing.F) {
	f.Add([]byte(`{"runtimes":{"x":{"path":"/x"}},"debug":true}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, old []byte) {
		added, err := addDocker(old, binary)
		if err == nil && !json.Valid(added) {
			t.Errorf("%q became %q", old, added)
		}
	})
}

func FuzzAddPodman(f *testing.F) {
	f.Add([]byte("[engine.runtimes]\ncrun = [\"/usr/bin/crun\"]\n"))
	f.Fuzz(func(t *testing.T, old []byte) {
		added, err := addPodman(old, binary)
		if err == nil && !bytes.Contains(added, []byte("husk")) {
			t.Errorf("%q became %q", old, added)
		}
	})
}
