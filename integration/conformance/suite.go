package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/huskvm/husk/integration/conformance/source"
)

const (
	module        = "github.com/opencontainers/runtime-tools"
	pinnedVersion = "v0.9.1-0.20251114084447-edf4cb3d2116"
	pinnedSum     = "h1:tAKu3NkKWZYpqBSOJKwTxT1wIGueiF7gcmcNgr5pNTY="
)

// suite is the validation suite, built.
type suite struct {
	version string
	dir     string   // the root of its tree, where its tests must run
	tests   []string // names, sorted; the binaries are in bin/
}

// prepareSuite fetches the suite through the module proxy, unless a checkout is given, and
// builds a copy of it.
func (o *commandOptions) prepareSuite(ctx context.Context) (*suite, error) {
	from, version := o.Suite, "checkout "+o.Suite
	if !strings.Contains(o.Suite, "/") {
		var err error
		if from, err = o.download(ctx); err != nil {
			return nil, fmt.Errorf("fetch %s@%s: %w (without a module proxy: clone https://%s and say -suite DIRECTORY)", module, o.Suite, err, module)
		}
		version = module + "@" + o.Suite
	}
	dir, err := filepath.Abs(filepath.Join(o.Build, "suite"))
	if err != nil {
		return nil, err
	}
	if err := source.Copy(from, dir); err != nil {
		return nil, fmt.Errorf("copy the suite: %w", err)
	}
	// Without a go.mod go would build it as a part of husk.
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return nil, fmt.Errorf("%s is no Go module yet, take a later version: %w", version, err)
	}
	s := &suite{version: version, dir: dir}
	if err := s.build(ctx); err != nil {
		return nil, fmt.Errorf("build the suite: %w", err)
	}
	return s, s.list()
}

// download returns the directory of the module cache that holds the suite.
func (o *commandOptions) download(ctx context.Context) (string, error) {
	sum := ""
	if o.Suite == pinnedVersion {
		sum = pinnedSum
	}
	return source.Download(ctx, module, o.Suite, sum)
}

func (s *suite) build(ctx context.Context) error {
	if err := os.Mkdir(filepath.Join(s.dir, "bin"), 0o755); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"-o", "runtimetest", "./cmd/runtimetest"}, // runs inside the container
		{"-o", "bin/", "./validation/..."},
	} {
		cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-mod=readonly"}, args...)...)
		cmd.Dir = s.dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	return nil
}

// list finds the tests in the source, so that a test that was not built is noticed.
func (s *suite) list() error {
	rootfs := filepath.Join(s.dir, "rootfs-"+runtime.GOARCH+".tar.gz")
	if _, err := os.Stat(rootfs); err != nil {
		return fmt.Errorf("the suite has no root file system for %s: %w", runtime.GOARCH, err)
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "validation"))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.IsDir() || entry.Name() == "util" {
			continue
		}
		if _, err := os.Stat(filepath.Join(s.dir, "bin", entry.Name())); err != nil {
			return fmt.Errorf("test %s was not built: %w", entry.Name(), err)
		}
		s.tests = append(s.tests, entry.Name())
	}
	if len(s.tests) == 0 {
		return errors.New("the suite has no tests")
	}
	return nil
}
