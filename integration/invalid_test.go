//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// base is a valid config. ROOTFS stands for a directory.
const base = `{
	"ociVersion": "1.0.2",
	"root": {"path": "ROOTFS"},
	"process": {
		"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
		"capabilities": {"bounding": ["CAP_KILL"]}, "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]
	},
	"hostname": "h",
	"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
	"annotations": {},
	"linux": {
		"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
		"resources": {}
	}
}`

// invalid is one change to base, and the field that the error has to name.
type invalid struct {
	path  string // "a.0.b"; "-" appends to a list
	value string // JSON; empty removes the field
	field string // empty: path, with indices in brackets
	// runcDiffers: runc 1.1 accepts the config, crashes or hangs.
	runcDiffers bool
}

var indices = regexp.MustCompile(`\.(\d+)`)

func (c invalid) named() string {
	if c.field != "" {
		return c.field
	}
	return indices.ReplaceAllString(c.path, "[$1]")
}

// apply returns config with the change.
func (c invalid) apply(t *testing.T, config string) string {
	t.Helper()
	var doc, value any
	decode := func(text string, into *any) {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber() // numbers stay as they are written
		if err := d.Decode(into); err != nil {
			t.Fatalf("%s: %v", clip(text, 80), err)
		}
	}
	decode(config, &doc)
	if c.value != "" {
		decode(c.value, &value)
	}
	keys := strings.Split(c.path, ".")
	b, err := json.Marshal(set(doc, keys, value, c.value == ""))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// set returns node with the value at keys. Missing objects on the way are made.
func set(node any, keys []string, value any, remove bool) any {
	if len(keys) == 0 {
		return value
	}
	n, err := strconv.Atoi(keys[0])
	if err == nil || keys[0] == "-" {
		list, _ := node.([]any)
		if err != nil || n >= len(list) {
			return append(list, set(nil, keys[1:], value, remove))
		}
		list[n] = set(list[n], keys[1:], value, remove)
		return list
	}
	object, _ := node.(map[string]any)
	if object == nil {
		object = map[string]any{}
	}
	if remove && len(keys) == 1 {
		delete(object, keys[0])
	} else {
		object[keys[0]] = set(object[keys[0]], keys[1:], value, remove)
	}
	return object
}

// TestInvalidConfig: each config is refused with one line that names the field, before anything
// is made.
func TestInvalidConfig(t *testing.T) {
	t.Parallel()
	shared := newEnv(t)
	rootfs := filepath.Join(shared.bundle(), "rootfs")
	config := strings.ReplaceAll(base, "ROOTFS", rootfs)
	link := shared.path("link")
	if err := os.Symlink(rootfs, link); err != nil {
		t.Fatal(err)
	}
	if len(invalidConfigs) < 150 {
		t.Fatalf("%d cases", len(invalidConfigs))
	}
	t.Run("cases", func(t *testing.T) {
		for _, c := range invalidConfigs {
			t.Run(c.path+" "+clip(c.value, 40), func(t *testing.T) {
				t.Parallel()
				c.value = strings.ReplaceAll(c.value, "SYMLINK", link)
				refuse(t, c.apply(t, config), c.named(), c.runcDiffers)
			})
		}
	})
}

// TestInvalidJSON: text that is no JSON, no object, or ambiguous.
func TestInvalidJSON(t *testing.T) {
	t.Parallel()
	const syntax = "invalid character"
	for name, c := range map[string]struct {
		config, text string
		runc         bool
	}{
		"empty":             {"", "unexpected end of JSON input", false},
		"truncated":         {base[:len(base)/2], "unexpected end of JSON input", false},
		"trailing garbage":  {base + "x", syntax, true},
		"two documents":     {base + base, syntax, true},
		"byte order mark":   {"\uFEFF" + base, syntax, false},
		"UTF-16":            {"{\x00}\x00", syntax, false},
		"comment":           {"// x\n" + base, syntax, false},
		"trailing comma":    {`{"ociVersion":"1.0.2",}`, syntax, false},
		"single quotes":     {`{'ociVersion':'1.0.2'}`, syntax, false},
		"raw control":       {"{\"ociVersion\":\"1.0\n.2\"}", syntax, false},
		"NUL":               {"\x00", syntax, false},
		"too deep":          {`{"x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + "}", "exceeded max depth", false},
		"a string":          {`"config"`, "cannot unmarshal string", false},
		"a number":          {"1e999", "cannot unmarshal number", false},
		"an array":          {"[]", "cannot unmarshal array", false},
		"a field twice":     {strings.Replace(base, `"hostname"`, `"hostname": "a", "hostname"`, 1), "hostname: is given twice", true},
		"a subfield twice":  {strings.Replace(base, `"cwd"`, `"cwd": "/", "cwd"`, 1), "process.cwd: is given twice", true},
		"in a list twice":   {strings.Replace(base, `"soft"`, `"soft": 0, "soft"`, 1), "process.rlimits[0].soft: is given twice", true},
		"too large a file":  {base + strings.Repeat(" ", 17<<20), "config.json\" is larger than 16 MiB", true},
		"twice in odd case": {strings.Replace(base, `"hostname"`, `"Hostname": "a", "hostname"`, 1), "hostname: is given twice", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refuse(t, c.config, c.text, c.runc)
		})
	}
}

// refuse calls run, which must fail with one line that contains text and must leave nothing.
// runcDiffers: runc accepts the config or crashes.
func refuse(t *testing.T, config, text string, runcDiffers bool) {
	t.Helper()
	if !isVM && runcDiffers {
		return // not tested with runc
	}
	e := newEnv(t)
	bundle, id := e.mkdir("bundle"), e.id()
	writeFile(t, filepath.Join(bundle, "config.json"), config)
	pidFile := e.path("pid")
	r := e.do("run", "--bundle", bundle, "--pid-file", pidFile, id)
	if r.code == 0 {
		t.Fatal("accepted")
	}
	if _, err := os.Stat(pidFile); err == nil {
		t.Error("a pid file is left")
	}
	e.do("state", id).fails(1, missing)
	if !isVM {
		return
	}
	line := strings.TrimSpace(r.stderr)
	if strings.Contains(line, "\n") || len(line) > 600 || !strings.HasPrefix(line, "husk run failed: ") || !strings.Contains(line, text) {
		t.Errorf("not one line with %q: %s", text, clip(line, 800))
	}
	r.oneLogLine(line)
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}
