package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Figures that the floors refer to.
const (
	figureRun     = "run true"
	figureCold    = "run true, cold"
	figureRestore = "restore to the agent's answer"
)

// step is one thing to measure.
type step struct {
	figure, subject string
	floor           string // the figure whose floor is this one's; empty: none
	f               func() (time.Duration, error)
}

// inTurn takes samples of all steps in turn, so that other load hits them alike.
func (b *bench) inTurn(steps []step) error {
	samples := make([][]time.Duration, len(steps))
	for range b.samples {
		for i, s := range steps {
			took, err := s.f()
			if err != nil {
				return fmt.Errorf("%s, %s: %w", s.figure, s.subject, err)
			}
			samples[i] = append(samples[i], took)
		}
	}
	for i, s := range steps {
		b.results.durations(s.figure, s.subject, s.floor, samples[i])
	}
	return nil
}

// timing turns a function into a step.
func timing(f func() error) func() (time.Duration, error) {
	return func() (time.Duration, error) { return timed(f) }
}

// warm measures containers that start from a template, and bare QEMU that wakes up from the
// same template.
func (b *bench) warm() error {
	vm, err := b.huskVM()
	if err != nil {
		return err
	}
	var steps []step
	for _, r := range b.runtimes {
		run := func() error { return r.run(b.bundle("true"), b.id()) }
		steps = append(steps, step{figureRun, r.name, figureRestore, timing(run)})
	}
	steps = append(
		steps,
		step{figureRestore, "husk", figureRestore, b.restoreTime},
		step{figureRestore, floorName, "", func() (time.Duration, error) { return vm.restore(b.dir) }},
	)
	return b.inTurn(steps)
}

// cold measures containers whose guest boots, and bare QEMU that boots the same kernel with an
// init that ends at once.
func (b *bench) cold() error {
	husk, err := b.coldHusk()
	if err != nil {
		return err
	}
	vm, err := b.huskVM()
	if err != nil {
		return err
	}
	initrd := filepath.Join(b.dir, "floor.cpio")
	if err := writeFloorInitrd(initrd, b.prog); err != nil {
		return err
	}
	return b.inTurn([]step{
		{figureCold, "husk", figureCold, timing(func() error { return husk.run(b.bundle("true"), b.id()) })},
		{figureCold, floorName, "", timing(func() error { return vm.boot(initrd) })},
	})
}

// create measures creating and deleting a container, as engines do it.
func (b *bench) create() error {
	var steps []step
	for _, r := range b.runtimes {
		var id string
		steps = append(
			steps,
			step{"create", r.name, figureRestore, timing(func() error {
				id = b.id()
				return r.call("create", "--bundle", b.bundle("true"), id)
			})},
			step{"delete", r.name, "", timing(func() error { return r.call("delete", "--force", id) })},
		)
	}
	return b.inTurn(steps)
}

// exec measures one more process in a running container.
func (b *bench) exec() (err error) {
	var steps []step
	for _, r := range b.runtimes {
		id := b.id()
		if err := r.call("run", "--detach", "--bundle", b.bundle("sleep 1000"), id); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.call("delete", "--force", id)) }()
		// The first exec in an emulated guest translates code that the others reuse.
		if err := r.call("exec", id, "true"); err != nil {
			return err
		}
		steps = append(steps, step{"exec true", r.name, "", timing(func() error { return r.call("exec", id, "true") })})
	}
	return b.inTurn(steps)
}

// coldHusk returns husk without templates, with its kernel unpacked already.
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

// restoreTime returns the time from starting the vmm to the agent's answer in one run, from
// husk's own timings.
func (b *bench) restoreTime() (time.Duration, error) {
	r := b.runtimes[0]
	var said bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.argv[0], append(r.argv[1:len(r.argv):len(r.argv)], "--timings", "run", "--bundle", b.bundle("true"), b.id())...)
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("husk --timings run: %w: %s", err, said.String())
	}
	var ms float64
	missing := map[string]bool{"vmm spawn": true, "restore": true, "confine vmm": true, "agent answers": true}
	for line := range strings.Lines(said.String()) {
		f := strings.Fields(line)
		if len(f) < 4 || f[2] != "supervisor" {
			continue
		}
		if phase := strings.Join(f[3:], " "); missing[phase] {
			delete(missing, phase)
			took, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				return 0, fmt.Errorf("read timings: %w", err)
			}
			ms += took
		}
	}
	if len(missing) > 0 {
		return 0, fmt.Errorf("read timings: %v are missing in %q", missing, said.String())
	}
	return time.Duration(ms * float64(time.Millisecond)), nil
}
