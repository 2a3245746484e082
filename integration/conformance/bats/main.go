// Command bats runs runc's own integration suite, the *.bats files of
// github.com/opencontainers/runc, with husk and with runc, and fails if a test gives another
// result than expected.txt says.
//
// The suite is fetched for the run and is no part of husk. runc is built from the same source,
// because a test belongs to the runc of its version.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/huskvm/husk/integration/conformance/options"
)

// tries is how often a test that fails is run. Many of the tests wait for a fixed time, which
// may be too short.
const tries = 2

type commandOptions struct {
	options.Options
	huskOnly   bool
	everything bool // what expected.txt leaves out as well
}

func init() {
	// The tests end with the thread that has started them, so the main goroutine keeps its
	// thread.
	runtime.LockOSThread()
}

func main() {
	o := commandOptions{Options: options.Options{
		Expected: "integration/conformance/bats/expected.txt", Suite: pinnedVersion, Build: "build/bats", Deadline: 2 * time.Minute,
	}}
	o.Register(flag.CommandLine, "runc whose suite", ", as in \"state.bats: state (kill + delete)\"")
	flag.BoolVar(&o.huskOnly, "husk-only", false, "do not run the tests with runc")
	flag.BoolVar(&o.everything, "all", false, "run what expected.txt leaves out as well, without judging it")
	flag.Parse()
	options.Main("bats", o.run)
}

func (o *commandOptions) run(ctx context.Context) error {
	match, err := o.Match()
	if err != nil {
		return err
	}
	expected, err := readExpectations(o.Expected)
	if err != nil {
		return err
	}
	s, err := o.prepareSuite(ctx)
	if err != nil {
		return err
	}
	husk, runc, err := o.runtimes(s)
	if err != nil {
		return err
	}
	r := &report{suite: s.version, pinned: o.Suite == pinnedVersion}
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
	return r.finish(o.Markdown)
}

// compare runs one test with both runtimes, and with husk again if it fails.
func (o *commandOptions) compare(ctx context.Context, s *suite, v *verdict, husk, runc *subject) (err error) {
	if !o.huskOnly {
		if v.runc, err = runc.run(ctx, s, v.test, o.Deadline); err != nil {
			return err
		}
	}
	for range tries {
		if v.husk, err = husk.run(ctx, s, v.test, o.Deadline); err != nil {
			return err
		}
		if v.husk.is == passed || v.husk.is == skipped || v.expected.want == wantFail {
			break
		}
	}
	return nil
}

// runtimes returns both runtimes. For husk it writes a wrapper script, because the suite calls
// a runtime by one path, without husk's flags.
func (o *commandOptions) runtimes(s *suite) (husk, runc *subject, err error) {
	argv, err := o.HuskArgv()
	if err != nil {
		return nil, nil, err
	}
	build, err := filepath.Abs(o.Build)
	if err != nil {
		return nil, nil, err
	}
	wrapper := filepath.Join(build, "husk")
	if err := options.WriteWrapper(wrapper, argv); err != nil {
		return nil, nil, err
	}
	if husk, err = newSubject(wrapper, filepath.Join(build, "husk-output")); err != nil {
		return nil, nil, err
	}
	runc, err = newSubject(filepath.Join(s.dir, "runc"), filepath.Join(build, "runc-output"))
	return husk, runc, err
}
