// Command conformance runs the OCI validation suite, the validation tests of
// github.com/opencontainers/runtime-tools, against husk and against runc on the
// same machine, and fails where husk does less than expected.txt says, or less
// than runc did a moment before.
//
// The suite is fetched for the run and is no part of husk: neither its code nor
// its dependencies are in husk's go.mod.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// tries of a test that falls short: several of them sleep and hope.
const tries = 3

type options struct {
	husk, config, runc string        // binaries and husk's settings file
	expected           string        // file
	suite              string        // module version, or a directory
	only               string        // regexp of test names
	build              string        // directory for the suite and the tests' output
	markdown, json     string        // files to write
	deadline           time.Duration // of one test
}

func init() {
	// The tests are to end with the thread that has started them: keep that one.
	runtime.LockOSThread()
}

func main() {
	var o options
	flag.StringVar(&o.husk, "husk", "./husk", "husk's `binary`")
	flag.StringVar(&o.config, "config", "", "husk's settings `file`")
	flag.StringVar(&o.runc, "runc", "runc", "the `binary` husk is compared with")
	flag.StringVar(&o.expected, "expected", "integration/conformance/expected.txt", "`file` of what each test must give")
	flag.StringVar(&o.suite, "suite", pinnedVersion, "`version` of runtime-tools to fetch, or the directory of a checkout, with a / in it")
	flag.StringVar(&o.only, "only", ".", "run the tests that match this `regexp`")
	flag.StringVar(&o.build, "build", "build/conformance", "`directory` for the suite and what its tests print")
	flag.StringVar(&o.markdown, "markdown", "", "write the table to this `file` as well")
	flag.StringVar(&o.json, "json", "", "write everything to this `file`")
	flag.DurationVar(&o.deadline, "deadline", 4*time.Minute, "of one test")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := o.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func (o *options) run(ctx context.Context) error {
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
	suite, err := o.prepareSuite(ctx)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "husk-conformance-")
	if err != nil {
		return err
	}
	// Users that a test maps to others have to reach their root file system.
	if err := os.Chmod(scratch, 0o755); err != nil {
		return err
	}
	husk, runc, err := o.runtimes(ctx, scratch)
	if err != nil {
		return err
	}
	defer cleanUp(ctx, scratch, runc, husk)
	r := &report{Suite: suite.version, Machine: machine(), Husk: husk.version, Runc: runc.version}
	for _, test := range suite.tests {
		if !match.MatchString(test) {
			continue
		}
		v, err := o.compare(ctx, suite, test, expected, runc, husk)
		if err != nil {
			return fmt.Errorf("%s: %w", test, err)
		}
		fmt.Fprintf(os.Stderr, "%-34s runc %-8s husk %-8s %4.0f s  %s\n", test, v.Runc, v.Husk, v.Runc.Seconds+v.Husk.Seconds, v.Verdict)
		r.Tests = append(r.Tests, v)
	}
	if o.suite == pinnedVersion {
		r.Missing = expected.without(suite.tests)
	}
	return r.finish(o.markdown, o.json)
}

// compare runs one test with each runtime, again where it falls short.
func (o *options) compare(ctx context.Context, suite *suite, test string, all expectations, runc, husk *subject) (verdict, error) {
	e, known := all[test]
	var v verdict
	for try := 1; try <= tries; try++ {
		if try == 1 || (known && !v.Runc.atLeast(e.runc)) {
			got, err := runc.run(ctx, suite, test, o.deadline)
			if err != nil {
				return v, err
			}
			v.Runc = better(v.Runc, got, try)
		}
		if try == 1 || v.Verdict != pass {
			got, err := husk.run(ctx, suite, test, o.deadline)
			if err != nil {
				return v, err
			}
			v.Husk = better(v.Husk, got, try)
		}
		v = judge(test, e, known, v.Runc, v.Husk)
		if v.Verdict == pass && (!known || v.Runc.atLeast(e.runc)) {
			break
		}
	}
	return v, nil
}

// better keeps the better of what the tries gave.
func better(best, next outcome, try int) outcome {
	if try > 1 && best.atLeast(next) {
		next = best
	}
	next.Tries = try
	return next
}

// runtimes makes a wrapper script for each runtime: the suite calls its runtime
// by one path and gives it no global flags.
func (o *options) runtimes(ctx context.Context, scratch string) (husk, runc *subject, err error) {
	output, err := filepath.Abs(o.build)
	if err != nil {
		return nil, nil, err
	}
	wrap := func(name, binary string, flags ...string) (*subject, error) {
		path, err := exec.LookPath(binary)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", name, err)
		}
		return newSubject(ctx, name, scratch, filepath.Join(output, name), append([]string{path}, flags...))
	}
	var settings []string
	if o.config != "" {
		config, err := filepath.Abs(o.config)
		if err != nil {
			return nil, nil, err
		}
		settings = []string{"--config", config}
	}
	if husk, err = wrap("husk", o.husk, settings...); err != nil {
		return nil, nil, err
	}
	runc, err = wrap("runc", o.runc)
	return husk, runc, err
}

// machine says on what the counts were seen.
func machine() string {
	var u unix.Utsname
	release := "?"
	if err := unix.Uname(&u); err == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	cgroups := "cgroup v1"
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		cgroups = "cgroup v2"
	}
	return fmt.Sprintf("Linux %s, %d CPUs, %s", release, runtime.NumCPU(), cgroups)
}

// without returns what is expected of tests that are not there.
func (e expectations) without(tests []string) []string {
	var missing []string
	for test := range e {
		if !slices.Contains(tests, test) {
			missing = append(missing, test)
		}
	}
	slices.Sort(missing)
	return missing
}
