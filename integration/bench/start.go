package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Figures that floors are named after.
const (
	figureRun     = "run true"
	figureCold    = "run true, cold"
	figureRestore = "restore to the agent's answer"
)

// start times the verbs of a container's life.
func (b *bench) start() error {
	cold, err := b.coldHusk()
	if err != nil {
		return err
	}
	times := map[string][]time.Duration{}
	note := func(figure, subject string, f func() error) error {
		took, err := timed(f)
		key := figure + "\x00" + subject
		times[key] = append(times[key], took)
		return err
	}
	running := map[string]string{}
	for _, r := range b.runtimes {
		running[r.name] = b.id()
		if err := r.call("run", "--detach", "--bundle", b.bundle("sleep 1000"), running[r.name]); err != nil {
			return err
		}
		// The first exec of an emulated guest translates what the others reuse.
		if err := r.call("exec", running[r.name], "true"); err != nil {
			return err
		}
	}
	var restores []time.Duration
	for range b.samples {
		for _, r := range b.runtimes {
			id := b.id()
			for _, step := range []struct {
				figure string
				f      func() error
			}{
				{figureRun, func() error { return r.run(b.bundle("true"), b.id()) }},
				{"exec true", func() error { return r.call("exec", running[r.name], "true") }},
				{"create", func() error { return r.call("create", "--bundle", b.bundle("true"), id) }},
				{"delete of a created one", func() error { return r.call("delete", "--force", id) }},
			} {
				if err := note(step.figure, r.name, step.f); err != nil {
					return err
				}
			}
		}
		took, err := b.restoreTime()
		if err != nil {
			return err
		}
		restores = append(restores, took)
	}
	// A cold start takes seconds: fewer samples.
	for range max(b.samples/4, 1) {
		if err := note(figureCold, "husk", func() error { return cold.run(b.bundle("true"), b.id()) }); err != nil {
			return err
		}
	}
	for _, figure := range []string{figureRun, figureCold, "exec true", "create", "delete of a created one"} {
		for _, r := range b.runtimes {
			if samples := times[figure+"\x00"+r.name]; len(samples) > 0 {
				b.results.durations(figure, r.name, figure, samples)
			}
		}
	}
	b.results.durations(figureRestore, "husk", figureRestore, restores)
	for _, r := range b.runtimes {
		if err := r.call("delete", "--force", running[r.name]); err != nil {
			return err
		}
	}
	return nil
}

// coldHusk is husk without templates, its kernel unpacked already.
func (b *bench) coldHusk() (*oci, error) {
	settings, err := os.ReadFile(b.config)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(b.dir, "cold.toml")
	if err := os.WriteFile(path, append([]byte("templates = \"off\"\n"), settings...), 0o644); err != nil {
		return nil, err
	}
	return &oci{name: "husk", argv: []string{b.husk, "--config", path, "--root", filepath.Join(b.dir, "husk")}}, nil
}

// restoreTime is how long husk's supervisor took from starting the vmm to the
// agent's answer, of one run, by husk's own account.
func (b *bench) restoreTime() (time.Duration, error) {
	r := b.runtimes[0]
	var said bytes.Buffer
	cmd := exec.Command(r.argv[0], append(r.argv[1:len(r.argv):len(r.argv)], "--timings", "run", "--bundle", b.bundle("true"), b.id())...)
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("husk --timings run: %w: %s", err, said.String())
	}
	var ms float64
	for line := range strings.Lines(said.String()) {
		f := strings.Fields(line)
		if len(f) < 4 || f[2] != "supervisor" {
			continue
		}
		switch strings.Join(f[3:], " ") {
		case "vmm spawn", "restore", "confine vmm", "agent hello":
			took, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				return 0, fmt.Errorf("read timings: %w", err)
			}
			ms += took
		}
	}
	if ms == 0 {
		return 0, fmt.Errorf("read timings: no phases in %q", said.String())
	}
	return time.Duration(ms * float64(time.Millisecond)), nil
}
