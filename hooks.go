package main

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
)

// hooksOf spares callers a nil check.
func hooksOf(h *specs.Hooks) specs.Hooks {
	if h == nil {
		return specs.Hooks{}
	}
	return *h
}

// runHooks runs hooks of the runtime namespace in order, each with the state on
// its stdin, and stops at the first that fails (runtime-spec, config.md,
// "POSIX-platform Hooks").
func runHooks(ctx context.Context, hooks []specs.Hook, kind string, st *specs.State) error {
	if len(hooks) == 0 {
		return nil
	}
	stdin, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("run %s hooks: %w", kind, err)
	}
	for i, h := range hooks {
		if err := runHook(ctx, h, stdin, st.Bundle); err != nil {
			return fmt.Errorf("error running %s hook #%d: %w", kind, i, err)
		}
	}
	return nil
}

func runHook(ctx context.Context, h specs.Hook, stdin []byte, bundle string) error {
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
	// Not nil: an empty environment is the spec's default, nil would be husk's own.
	cmd.Env = append([]string{}, h.Env...)
	// By the time of poststop the bundle may be gone.
	if _, err := os.Stat(bundle); err == nil {
		cmd.Dir = bundle
	}
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout = &stdout
	cmd.Stderr = &stderr
	// A child the hook leaves behind with its pipes must not hold husk up.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil
	case ctx.Err() != nil && h.Timeout != nil:
		return fmt.Errorf("hook ran past timeout of %ds", *h.Timeout)
	}
	return fmt.Errorf("%w, stdout: %s, stderr: %s", err, stdout.String(), stderr.String())
}
