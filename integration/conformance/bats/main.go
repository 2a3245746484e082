// Command bats runs runc's own integration suite, the *.bats files of
// github.com/opencontainers/runc, with husk and with runc as the runtime, and
// fails where a test gives something else than expected.txt says.
//
// The suite is fetched for the run and is no part of husk; runc is built from the
// same source, since a test belongs to the runc of its version.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tries of a test that falls short: many of them wait for a fixed time and hope.
const tries = 2

type options struct {
	husk, config string // binary and settings file
	expected     string // file
	suite        string // module version, or a directory
	only         string // regexp of "FILE: NAME"
	build        string // directory for the suite and what its tests print
	markdown     string // file to write
	huskOnly     bool
	everything   bool // what expected.txt leaves out as well
	deadline     time.Duration
}

func init() {
	// The tests are to end with the thread that has started them: keep that one.
	runtime.LockOSThread()
}

func main() {
	var o options
	flag.StringVar(&o.husk, "husk", "./husk", "husk's `binary`")
	flag.StringVar(&o.config, "config", "", "husk's settings `file`")
	flag.StringVar(&o.expected, "expected", "integration/conformance/bats/expected.txt", "`file` of what each test must give")
	flag.StringVar(&o.suite, "suite", pinnedVersion, "`version` of runc whose suite to fetch, or the directory of a checkout, with a / in it")
	flag.StringVar(&o.only, "only", ".", "run the tests that match this `regexp`, as in \"state.bats: state (kill + delete)\"")
	flag.StringVar(&o.build, "build", "build/bats", "`directory` for the suite and what its tests print")
	flag.StringVar(&o.markdown, "markdown", "", "write the table to this `file` as well")
	flag.BoolVar(&o.huskOnly, "husk-only", false, "do not run the tests with runc")
	flag.BoolVar(&o.everything, "all", false, "run what expected.txt leaves out as well, without judging it")
	flag.DurationVar(&o.deadline, "deadline", 2*time.Minute, "of one test")
	flag.Parse()
	if err := o.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bats:", err)
		os.Exit(1)
	}
}

func (o *options) run() error {
	if os.Getuid() != 0 {
		return errors.New("the suite's tests must run as root")
	}
	match, err := regexp.Compile(o.only)
	if err != nil {
		return err
	}
	expected, err := readExpectations(o.expected)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	s, err := o.prepareSuite(ctx)
	if err != nil {
		return err
	}
	husk, runc, err := o.runtimes(s)
	if err != nil {
		return err
	}
	r := &report{suite: s.version, pinned: o.suite == pinnedVersion}
	for _, t := range s.tests {
		if !match.MatchString(t.String()) {
			continue
		}
		e, known := expected[t]
		v := verdict{test: t, expected: e, known: known}
		if e.want != leftOut || o.everything {
			if err := o.compare(ctx, s, &v, husk, runc); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
		}
		v.judge()
		fmt.Fprintf(os.Stderr, "%-70s runc %-8s husk %-8s %4.0f s  %s\n", t, v.runc, v.husk, (v.runc.took + v.husk.took).Seconds(), v.wrong)
		r.verdicts = append(r.verdicts, v)
	}
	if r.pinned {
		r.missing = expected.without(s.tests)
	}
	return r.finish(o.markdown)
}

// compare runs one test with both runtimes, husk again where it falls short.
func (o *options) compare(ctx context.Context, s *suite, v *verdict, husk, runc *subject) (err error) {
	if !o.huskOnly {
		if v.runc, err = runc.run(ctx, s, v.test, o.deadline); err != nil {
			return err
		}
	}
	for range tries {
		if v.husk, err = husk.run(ctx, s, v.test, o.deadline); err != nil {
			return err
		}
		if v.husk.is == passed || v.husk.is == skipped || v.expected.want == wantFail {
			break
		}
	}
	return nil
}

// runtimes makes a wrapper script for husk: the suite calls its runtime by one
// path and gives it no flags of husk's.
func (o *options) runtimes(s *suite) (husk, runc *subject, err error) {
	path, err := filepath.Abs(o.husk)
	if err != nil {
		return nil, nil, err
	}
	argv := []string{path}
	if o.config != "" {
		config, err := filepath.Abs(o.config)
		if err != nil {
			return nil, nil, err
		}
		argv = append(argv, "--config", config)
	}
	for i, arg := range argv {
		argv[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	build, err := filepath.Abs(o.build)
	if err != nil {
		return nil, nil, err
	}
	wrapper := filepath.Join(build, "husk")
	script := "#!/bin/sh\nexec " + strings.Join(argv, " ") + " \"$@\"\n"
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		return nil, nil, err
	}
	if husk, err = newSubject(wrapper, filepath.Join(build, "husk-output")); err != nil {
		return nil, nil, err
	}
	runc, err = newSubject(filepath.Join(s.dir, "runc"), filepath.Join(build, "runc-output"))
	return husk, runc, err
}
