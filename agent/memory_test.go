package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestContainersMemory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "meminfo")
	for text, want := range map[string]int64{
		"MemTotal:      210900 kB\nMemFree:  1 kB\nMemAvailable:  158868 kB\n": 158868 << 10,
		"MemTotal:      210900 kB\n": 0,
		"MemAvailable:  many kB\n":   0,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := containersMemory(file)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
}

// TestBoundMemory: boundMemory never raises a limit.
func TestBoundMemory(t *testing.T) {
	const limit = 500
	for was, want := range map[string]string{"max\n": "500", "900\n": "500", "300\n": "300\n"} {
		root := t.TempDir()
		file := filepath.Join(root, "top", "memory.max")
		if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(was), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := boundMemory(root, "/top/below/it", limit); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if err != nil || string(got) != want {
			t.Errorf("was %q: is %q, %v, want %q", was, got, err, want)
		}
	}
	if err := boundMemory(t.TempDir(), "/top", limit); err != nil {
		t.Errorf("without the controller: %v", err)
	}
}
