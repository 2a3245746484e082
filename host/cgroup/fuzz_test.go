package cgroup

import "testing"

// FuzzParseUnit parses arbitrary values of cgroupsPath for systemd.
func FuzzParseUnit(f *testing.F) {
	f.Add("id", "system.slice:docker:abc")
	f.Add("id", "")
	f.Fuzz(func(t *testing.T, id, path string) {
		u, err := parseUnit(id, path)
		if (u == nil) == (err == nil) {
			t.Errorf("%v and %v", u, err)
		}
	})
}

// FuzzFindKey parses arbitrary text as a cgroup file.
func FuzzFindKey(f *testing.F) {
	f.Add("low 0\noom_kill 3\n", "oom_kill")
	f.Fuzz(func(t *testing.T, text, key string) {
		if n, ok := findKey(text, key); !ok && n != 0 && n != 1<<63-1 && n != -1<<63 {
			t.Errorf("%d of a line that is no number", n)
		}
	})
}
