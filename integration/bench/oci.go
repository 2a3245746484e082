package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// callTimeout bounds each call of a runtime. A longer call hangs.
const callTimeout = 5 * time.Minute

// oci is one runtime.
type oci struct {
	name string
	argv []string // with its global flags
}

var lastID atomic.Int64

// id returns an unused id.
func (b *bench) id() string {
	return fmt.Sprintf("%s-%d", filepath.Base(b.dir), lastID.Add(1))
}

func (b *bench) bundle(command string) string {
	return filepath.Join(b.dir, "bundle-"+strings.ReplaceAll(command, " ", "-"))
}

// call runs the runtime with stdout and stderr in files, because the container would keep a
// pipe open.
func (r *oci) call(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.argv[0], append(r.argv[1:len(r.argv):len(r.argv)], args...)...)
	said, err := os.CreateTemp("", "husk-bench-said-")
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(said.Close(), os.Remove(said.Name())) }()
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(said.Name())
		return fmt.Errorf("%s %s: %w: %s", r.name, strings.Join(args, " "), err, bytes.TrimSpace(text))
	}
	return nil
}

func (r *oci) run(bundle, id string) error { return r.call("run", "--bundle", bundle, id) }

// output runs a container and calls read with its stdout.
func (r *oci) output(bundle, id string, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.argv[0], append(r.argv[1:len(r.argv):len(r.argv)], "run", "--bundle", bundle, id)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := read(out)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s run: %w", r.name, err)
	}
	return readErr
}

// ask returns what a verb prints.
func (r *oci) ask(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, r.argv[0], append(r.argv[1:len(r.argv):len(r.argv)], args...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", r.name, strings.Join(args, " "), err)
	}
	return out, nil
}

// timed returns how long f takes.
func timed(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}

// makeRootfs makes a root filesystem with busybox and testprog.
func makeRootfs(dir, prog string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "etc", "volume"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for from, to := range map[string]string{busybox: "busybox", prog: "testprog"} {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "bin", to), data, 0o755)
		}
		if err != nil {
			return err
		}
	}
	for _, applet := range []string{"sh", "true", "sleep", "echo", "cat"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			return err
		}
	}
	return nil
}

// makeBundle writes the configuration that a runtime's spec command writes, for a command
// without a terminal.
func (b *bench) makeBundle(dir, rootfs string, args []string, mounts ...specs.Mount) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Two sections may make a bundle of the same name, and spec does not overwrite.
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := b.runtimes[0].call("spec", "--bundle", dir); err != nil {
		return err
	}
	return editSpec(dir, func(spec *specs.Spec) {
		spec.Version = "1.0.2" // Debian 12's crun refuses a newer one
		spec.Process.Terminal = false
		spec.Process.Args = args
		spec.Root.Path, spec.Root.Readonly = rootfs, false
		spec.Mounts = append(spec.Mounts, mounts...)
	})
}

// editSpec changes a bundle's configuration.
func editSpec(bundle string, edit func(*specs.Spec)) error {
	path := filepath.Join(bundle, "config.json")
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(doc, spec); err != nil {
		return err
	}
	edit(spec)
	if doc, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, doc, 0o644)
}

// pid returns the pid of the container's process on the host.
func (r *oci) pid(id string) (int, error) {
	out, err := r.ask("state", id)
	if err != nil {
		return 0, err
	}
	var st specs.State
	if err := json.Unmarshal(out, &st); err != nil {
		return 0, err
	}
	return st.Pid, nil
}

// descendants returns a process and all processes below it.
func descendants(pid int) []int {
	all := []int{pid}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, descendants(child)...)
			}
		}
	}
	return all
}

// cleanUp deletes the containers that are left, and then the scratch directory, in which
// nothing is mounted by then.
func (b *bench) cleanUp() {
	for _, r := range b.runtimes {
		out, err := r.ask("list", "-q")
		if err != nil {
			continue
		}
		for id := range strings.FieldsSeq(string(out)) {
			_ = r.call("delete", "--force", id)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), b.dir) {
		fmt.Fprintf(os.Stderr, "bench: %s is left: something is mounted there\n", b.dir)
		return
	}
	_ = os.RemoveAll(b.dir)
	unix.Sync() // otherwise the next run would have to write this one's files
}
