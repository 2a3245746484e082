package specconv

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzConvert: arbitrary bytes as config.json give an error, or a plan for which checkPlan
// holds.
func FuzzConvert(f *testing.F) {
	configs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(configs) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, config := range configs {
		b, err := os.ReadFile(config)
		if err != nil {
			f.Fatal(err)
		}
		var compact bytes.Buffer // the fuzzer works better with short inputs
		if err := json.Compact(&compact, b); err != nil {
			f.Fatal(err)
		}
		f.Add(compact.Bytes())
	}
	f.Add([]byte(`null`))
	f.Add([]byte(`{"ociVersion":"1.3.0","process":{"args":["a"],"cwd":"/"},"root":{"path":"r"},"linux":{"namespaces":[{"type":"mount"},{"type":"network"}]},"mounts":[{"destination":"/a","source":"/","type":"bind"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		spec, err := decode(b)
		if err != nil {
			return
		}
		plan, err := Convert(testEnv(), spec)
		if err != nil {
			return
		}
		checkPlan(t, plan)
	})
}

// FuzzResources parses arbitrary bytes as the input of update.
func FuzzResources(f *testing.F) {
	f.Add([]byte(`{"memory":{"limit":100},"cpu":{"cpus":"0-3"},"unified":{"memory.max":"5"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r specs.LinuxResources
		if json.Unmarshal(b, &r) != nil {
			return
		}
		_, guest, err := Resources(&r, &r)
		if (guest == nil) == (err == nil) {
			t.Errorf("got %v and %v", guest, err)
		}
	})
}

// FuzzProcess parses arbitrary bytes as the process file of exec.
func FuzzProcess(f *testing.F) {
	f.Add([]byte(`{"args":["sh"],"cwd":"/","env":["A=b"],"user":{"uid":1,"additionalGids":[5]},"capabilities":{"bounding":["CAP_CHOWN"]},"rlimits":[{"type":"RLIMIT_NOFILE","hard":5,"soft":5}]}`))
	f.Add([]byte(`{"args":["sh"],"cwd":"x","terminal":true,"consoleSize":{"height":1,"width":2},"scheduler":{"policy":"SCHED_FIFO","priority":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := &specs.Process{}
		if json.Unmarshal(b, p) != nil {
			return
		}
		guest, _, err := ConvertProcess(p)
		if (guest == nil) == (err == nil) {
			t.Fatalf("got %v and %v", guest, err)
		}
		if err == nil && (len(guest.Args) == 0 || !filepath.IsAbs(guest.Cwd)) {
			t.Errorf("args %q, cwd %q", guest.Args, guest.Cwd)
		}
	})
}
