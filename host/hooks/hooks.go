// Package hooks runs hooks of a container that are programs of the host.
package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
)

// Of returns *h, or no hooks if h is nil.
func Of(h *specs.Hooks) specs.Hooks {
	if h == nil {
		return specs.Hooks{}
	}
	return *h
}

// AtCreate says whether a container has hooks that run during create. The supervisor has to be
// ready before they run, and waits until they have run.
func AtCreate(h *specs.Hooks) bool {
	all := Of(h)
	//nolint:staticcheck // prestart is deprecated, and what Docker before 28 wires its networks with
	return len(all.Prestart)+len(all.CreateRuntime)+len(all.CreateContainer) > 0
}

// Timeout returns how long hooks may take together. bounded is false if one of them has no
// timeout.
func Timeout(hooks []specs.Hook) (limit time.Duration, bounded bool) {
	for _, h := range hooks {
		if h.Timeout == nil {
			return 0, false
		}
		limit += time.Duration(*h.Timeout) * time.Second
	}
	return limit, true
}

// Run runs hooks in order and stops at the first that fails (runtime-spec, config.md,
// "POSIX-platform Hooks"). Each gets the state on its stdin, and runs in the directory dir if
// that exists. The error has runc's words.
func Run(ctx context.Context, hooks []specs.Hook, kind string, st *specs.State, dir string) error {
	return runEach(ctx, hooks, kind, st, dir, nil)
}

// RunAll is Run for hooks whose failure is only a warning: it calls warn with the error and
// runs the next one.
func RunAll(ctx context.Context, hooks []specs.Hook, kind string, st *specs.State, dir string, warn func(error)) {
	if err := runEach(ctx, hooks, kind, st, dir, warn); err != nil {
		warn(err)
	}
}

func runEach(ctx context.Context, hooks []specs.Hook, kind string, st *specs.State, dir string, warn func(error)) error {
	if len(hooks) == 0 {
		return nil
	}
	stdin, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("run %s hooks: %w", kind, err)
	}
	for i, h := range hooks {
		logrus.Debugf("%s hook #%d: %s", kind, i, h.Path)
		if err := run(ctx, h, stdin, dir); err != nil {
			err = fmt.Errorf("error running %s hook #%d: %w", kind, i, err)
			if warn == nil {
				return err
			}
			warn(err)
		}
	}
	return nil
}

func run(ctx context.Context, h specs.Hook, stdin []byte, dir string) error {
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	// Not nil: the spec's default is an empty environment, and with nil the hook would get
	// husk's.
	cmd.Env = append([]string{}, h.Env...)
	// When poststop hooks run, the bundle may be gone.
	if _, err := os.Stat(dir); err == nil {
		cmd.Dir = dir
	}
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout = &stdout
	cmd.Stderr = &stderr
	// A child that the hook leaves behind may hold its pipes open. husk does not wait for it.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil
	case ctx.Err() != nil && h.Timeout != nil:
		return fmt.Errorf("hook ran past specified timeout of %.1fs", float64(*h.Timeout))
	}
	return fmt.Errorf("%w, stdout: %s, stderr: %s", err, stdout.String(), stderr.String())
}
