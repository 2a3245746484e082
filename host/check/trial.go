package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// trialTimeout bounds a first boot under emulation on a busy host, with a kernel to unpack.
	trialTimeout = 5 * time.Minute
	// endTimeout bounds the deletion of a container whose trial has failed.
	endTimeout = time.Minute
	// maxTrialOutput bounds what is shown of the container's output, in bytes.
	maxTrialOutput = 4096
	// trialProgram is the path of this executable in the container.
	trialProgram = "/husk"
)

// Trial describes a container to try. Spec is the spec to start from, Self the path of this
// executable, Global the flags before the verb, and Inside the arguments with which this
// executable prints the release of the running kernel.
type Trial struct {
	Spec   *specs.Spec
	Self   string
	Global []string
	Inside []string
}

// Run runs a container that contains only this executable, and returns which kernel it saw and
// how long it took. It leaves nothing behind.
func (t Trial) Run(ctx context.Context) Check {
	c := Check{Name: "run", Status: OK}
	const advice = "docs/troubleshooting.md says what the parts of such an error mean"
	dir, err := os.MkdirTemp("", "husk-check-")
	if err != nil {
		return c.fail(err.Error(), "make room for temporary files")
	}
	defer removeUnmounted(dir)
	if err := t.writeBundle(dir); err != nil {
		return c.fail(err.Error(), "make room for temporary files")
	}
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	began := time.Now()
	cmd := t.husk(ctx, dir, "run", "--bundle", dir, filepath.Base(dir))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	took := time.Since(began).Round(time.Millisecond)
	if err != nil {
		said := stderr.String()
		if eerr := t.end(dir); eerr != nil { //nolint:contextcheck // ctx may have ended
			said += eerr.Error()
		}
		return c.fail(fmt.Sprintf("no container runs: %v: %s", err, said[:min(len(said), maxTrialOutput)]), advice)
	}
	release := firstLine(stdout.Bytes())
	if release == "" {
		return c.fail("a container ran and printed nothing", advice)
	}
	c.Detail = fmt.Sprintf("a container ran on Linux %q in %s", release, took)
	return c
}

// husk returns a command that calls this executable, with its state below dir.
func (t Trial) husk(ctx context.Context, dir string, args ...string) *exec.Cmd {
	global := slices.Concat(t.Global, []string{"--root", filepath.Join(dir, "state")})
	return exec.CommandContext(ctx, t.Self, append(global, args...)...)
}

// end deletes the container of a run that has failed or was killed because it took too long.
// Its virtual machine would go on otherwise.
func (t Trial) end(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if out, err := t.husk(ctx, dir, "delete", "--force", filepath.Base(dir)).CombinedOutput(); err != nil {
		return fmt.Errorf("delete the container: %w: %s", err, firstLine(out))
	}
	return nil
}

// removeUnmounted removes a directory, unless something is mounted below it: the files of that
// mount would be removed.
func removeUnmounted(dir string) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil && !bytes.Contains(mounts, []byte(dir)) {
		os.RemoveAll(dir)
	}
}

func (t Trial) writeBundle(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		return err
	}
	if t.Spec == nil || t.Spec.Process == nil || t.Spec.Root == nil {
		return errors.New("write bundle: no spec to start from")
	}
	spec := *t.Spec
	process := *spec.Process
	process.Terminal, process.Args = false, append([]string{trialProgram}, t.Inside...)
	spec.Process = &process
	spec.Root = &specs.Root{Path: "rootfs"}
	spec.Mounts = append(append([]specs.Mount{}, spec.Mounts...), specs.Mount{
		Destination: trialProgram, Type: "bind", Source: t.Self, Options: []string{"bind", "ro"},
	})
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
}
