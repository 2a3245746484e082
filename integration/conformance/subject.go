package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/integration/conformance/options"
)

// callTimeout bounds the calls besides those of the suite.
const callTimeout = time.Minute

// subject is a runtime under test.
type subject struct {
	version string // first line of --version
	wrapper string // script that adds the global flags
	temp    string // TMPDIR of its tests: their bundles
	output  string // directory for what its tests print
}

func newSubject(ctx context.Context, name, scratch, output string, argv []string) (*subject, error) {
	s := &subject{wrapper: filepath.Join(scratch, name), temp: filepath.Join(scratch, name+"-tmp"), output: output}
	if err := errors.Join(os.Mkdir(s.temp, 0o755), os.RemoveAll(output), os.MkdirAll(output, 0o755)); err != nil {
		return nil, err
	}
	argv = append(argv, "--root", filepath.Join(scratch, name+"-root"))
	if err := options.WriteWrapper(s.wrapper, argv); err != nil {
		return nil, err
	}
	out, err := s.call(ctx, "--version")
	if err != nil {
		return nil, err
	}
	s.version, _, _ = strings.Cut(string(out), "\n")
	return s, nil
}

// call runs a verb and returns what it prints.
func (s *subject) call(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout) // clean up after an interrupt as well
	defer cancel()
	out, err := exec.CommandContext(ctx, s.wrapper, args...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", filepath.Base(s.wrapper), strings.Join(args, " "), err)
	}
	return out, nil
}

// run runs one test. An error means that it could not be run; the test's result is in the
// outcome.
func (s *subject) run(ctx context.Context, suite *suite, test string, deadline time.Duration) (outcome, error) {
	stdout, err := os.Create(filepath.Join(s.output, test+".out"))
	if err != nil {
		return outcome{}, err
	}
	defer stdout.Close()
	stderr, err := os.Create(filepath.Join(s.output, test+".err"))
	if err != nil {
		return outcome{}, err
	}
	defer stderr.Close()
	limited, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	cmd := exec.CommandContext(limited, filepath.Join(suite.dir, "bin", test))
	cmd.Dir = suite.dir // they look for the root file system and runtimetest there
	cmd.Env = append(os.Environ(), "RUNTIME="+s.wrapper, "TMPDIR="+s.temp)
	// Files and not pipes, because a container that is left would keep a pipe open.
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	// The test's own children are killed with it; its containers have sessions of their own.
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	began := time.Now()
	runErr := cmd.Run()
	took := time.Since(began)
	if err := errors.Join(ctx.Err(), s.deleteAll(ctx)); err != nil {
		return outcome{}, err
	}
	text, err := os.ReadFile(stdout.Name())
	if err != nil {
		return outcome{}, err
	}
	o := parse(text)
	o.Seconds = took.Seconds()
	switch {
	case limited.Err() != nil:
		o.Trouble = fmt.Sprintf("not done after %s", deadline)
	case runErr != nil:
		o.Trouble = runErr.Error()
	}
	return o, nil
}

// deleteAll deletes the containers that a test has left.
func (s *subject) deleteAll(ctx context.Context) error {
	out, err := s.call(ctx, "list", "-q")
	if err != nil {
		return err
	}
	for id := range strings.FieldsSeq(string(out)) {
		if _, err := s.call(ctx, "delete", "--force", id); err != nil {
			return err
		}
	}
	return nil
}

// cleanUp removes the scratch directory if nothing is mounted in it.
func cleanUp(ctx context.Context, scratch string, subjects ...*subject) {
	for _, s := range subjects {
		if err := s.deleteAll(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "conformance:", err)
		}
	}
	// runc leaves the mounts of a container without a mount namespace.
	mounts, err := mountsBelow(scratch)
	for _, dir := range slices.Backward(mounts) {
		err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	}
	if err == nil {
		mounts, err = mountsBelow(scratch)
	}
	if err == nil && len(mounts) == 0 {
		err = os.RemoveAll(scratch)
	}
	if err != nil || len(mounts) > 0 {
		fmt.Fprintf(os.Stderr, "conformance: %s is left, with %d mounts: %v\n", scratch, len(mounts), err)
	}
}

// mountsBelow lists the mount points below a directory, each after the one it is mounted on.
func mountsBelow(dir string) ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var below []string
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			below = append(below, fields[4])
		}
	}
	return below, nil
}
