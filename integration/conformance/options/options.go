// Package options is what the commands that run a foreign test suite have in common: their
// options, and the script by which a suite calls a runtime.
package options

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options are the options of both commands. A command sets the defaults before Register.
type Options struct {
	Husk     string // path of the binary
	Config   string // husk's settings file; empty: none
	Expected string // file of what each test must give
	Suite    string // version to fetch, or a directory with a / in its name
	Only     string // regexp of the tests to run
	Build    string // directory for the suite and what its tests print
	Markdown string // file to write the table to; empty: none
	Deadline time.Duration
}

// Register defines the flags. suite names the program whose test suite it is, and tests says
// what Only matches.
func (o *Options) Register(flags *flag.FlagSet, suite, tests string) {
	flags.StringVar(&o.Husk, "husk", "./husk", "husk's `binary`")
	flags.StringVar(&o.Config, "config", "", "husk's settings `file`")
	flags.StringVar(&o.Expected, "expected", o.Expected, "`file` of what each test must give")
	flags.StringVar(&o.Suite, "suite", o.Suite, "`version` of "+suite+" to fetch, or the directory of a checkout, with a / in it")
	flags.StringVar(&o.Only, "only", ".", "run the tests that match this `regexp`"+tests)
	flags.StringVar(&o.Build, "build", o.Build, "`directory` for the suite and what its tests print")
	flags.StringVar(&o.Markdown, "markdown", "", "write the table to this `file` as well")
	flags.DurationVar(&o.Deadline, "deadline", o.Deadline, "of one test")
}

// Match returns the compiled Only. It returns an error if the caller is not root, whom the
// tests of both suites need.
func (o *Options) Match() (*regexp.Regexp, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("the suite's tests must run as root")
	}
	return regexp.Compile(o.Only)
}

// HuskArgv returns the command that calls husk with its settings, with absolute paths.
func (o *Options) HuskArgv() ([]string, error) {
	path, err := filepath.Abs(o.Husk)
	if err != nil || o.Config == "" {
		return []string{path}, err
	}
	config, err := filepath.Abs(o.Config)
	return []string{path, "--config", config}, err
}

// WriteWrapper writes a shell script that calls argv with the script's arguments: a suite
// calls its runtime by one path, and gives it no global flags.
func WriteWrapper(path string, argv []string) error {
	quoted := make([]string, len(argv))
	for i, arg := range argv {
		quoted[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	script := "#!/bin/sh\nexec " + strings.Join(quoted, " ") + " \"$@\"\n"
	return os.WriteFile(path, []byte(script), 0o755)
}

// Main runs a command until it has ended or is interrupted, and ends the program.
func Main(name string, run func(ctx context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
