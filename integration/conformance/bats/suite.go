package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/huskvm/husk/integration/conformance/source"
)

const (
	module        = "github.com/opencontainers/runc"
	pinnedVersion = "v1.4.3"
	pinnedSum     = "h1:/bq84roxG30xEICkFodXzMEVQFs7kzo4lCiZME1uKxI="
)

// suite is runc's integration suite, with everything built that it needs.
type suite struct {
	version string
	dir     string // root directory of runc's source
	tests   []test
}

// test is one test of the suite.
type test struct{ file, name string }

func (t test) String() string { return t.file + ": " + t.name }

func (s *suite) integration() string { return filepath.Join(s.dir, "tests", "integration") }

// prepareSuite fetches runc's source through the module proxy, unless a checkout is given, and
// builds runc, the suite's helpers and its images in a copy of it. It reuses what an earlier
// run has built of the pinned version.
func (o *commandOptions) prepareSuite(ctx context.Context) (*suite, error) {
	name, from := o.Suite, o.Suite
	if strings.Contains(o.Suite, "/") {
		name = "checkout"
	}
	dir, err := filepath.Abs(filepath.Join(o.Build, "runc-"+name))
	if err != nil {
		return nil, err
	}
	s := &suite{version: module + "@" + o.Suite, dir: dir}
	if name == "checkout" {
		s.version = "runc, checkout " + o.Suite
	}
	built := filepath.Join(dir, ".built")
	if _, err := os.Stat(built); err == nil && name != "checkout" {
		return s, s.list()
	}
	if name != "checkout" {
		if from, err = o.download(ctx); err != nil {
			return nil, fmt.Errorf("fetch %s@%s: %w (without a module proxy: clone https://%s and say -suite DIRECTORY)", module, o.Suite, err, module)
		}
	}
	if err := source.Copy(from, dir); err != nil {
		return nil, fmt.Errorf("copy the suite: %w", err)
	}
	if err := s.build(ctx); err != nil {
		return nil, fmt.Errorf("build the suite: %w", err)
	}
	if err := s.images(ctx, filepath.Join(o.Build, "images")); err != nil {
		return nil, err
	}
	if err := s.list(); err != nil {
		return nil, err
	}
	return s, os.WriteFile(built, nil, 0o644)
}

// download returns the directory with runc's source in the module cache.
func (o *commandOptions) download(ctx context.Context) (string, error) {
	sum := ""
	if o.Suite == pinnedVersion {
		sum = pinnedSum
	}
	return source.Download(ctx, module, o.Suite, sum)
}

// build builds runc and the helpers as the suite's Makefile does, which would need git and a
// vendor directory.
func (s *suite) build(ctx context.Context) error {
	version, err := os.ReadFile(filepath.Join(s.dir, "VERSION"))
	if err != nil {
		return err
	}
	targets := [][]string{{"-ldflags", "-X main.gitCommit=" + filepath.Base(s.dir) + " -X main.version=" + strings.TrimSpace(string(version)), "-o", "runc", "."}}
	helpers, err := s.helpers()
	if err != nil {
		return err
	}
	targets = append(targets, helpers...)
	for _, args := range targets {
		cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-mod=readonly", "-tags", "seccomp"}, args...)...)
		cmd.Dir = s.dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	// A module's archive does not record which files are executable.
	scripts, err := filepath.Glob(filepath.Join(s.integration(), "*.sh"))
	if err != nil {
		return err
	}
	for _, script := range scripts {
		if err := os.Chmod(script, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// helpers returns go build's arguments for each program that the tests use. The place where the
// tests look for them changed in runc 1.3.
func (s *suite) helpers() ([][]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "tests", "cmd"))
	if err != nil {
		return nil, err
	}
	var targets [][]string
	for _, e := range entries {
		if name := e.Name(); e.IsDir() {
			for _, binary := range []string{"tests/cmd/_bin/" + name, path.Join("tests/cmd", name, name)} {
				targets = append(targets, []string{"-o", binary, "./tests/cmd/" + name})
			}
		}
	}
	if len(targets) == 0 {
		return nil, errors.New("no programs of the tests in tests/cmd")
	}
	return targets, nil
}

// images puts the two root filesystems where the suite looks before it downloads them. They are
// kept, because making one takes minutes.
func (s *suite) images(ctx context.Context, kept string) error {
	script := filepath.Join("integration", "conformance", "bats", "images.sh")
	cmd := exec.CommandContext(ctx, script, kept)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make the images: %w", err)
	}
	return os.CopyFS(filepath.Join(s.integration(), "testdata"), os.DirFS(kept))
}

var testLine = regexp.MustCompile(`(?m)^@test "(.*)" \{`)

// list finds the tests in the source.
func (s *suite) list() error {
	files, err := filepath.Glob(filepath.Join(s.integration(), "*.bats"))
	if err != nil {
		return err
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range testLine.FindAllSubmatch(text, -1) {
			s.tests = append(s.tests, test{filepath.Base(path), strings.TrimSpace(string(m[1]))})
		}
	}
	if len(s.tests) == 0 {
		return fmt.Errorf("no tests in %s", s.integration())
	}
	return nil
}
