// Command conformance runs the OCI validation suite, the validation tests of
// github.com/opencontainers/runtime-tools, with husk and with runc on the same machine. It
// fails if husk's result is worse than expected.txt says or worse than runc's.
//
// The suite is fetched for the run and is no part of husk: husk's go.mod has neither its code
// nor its dependencies.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/integration/conformance/options"
)

// tries is how often a test that fails is run. Several of the tests sleep for a time that may
// be too short.
const tries = 3

type commandOptions struct {
	options.Options
	runc string // path of the binary
	json string // file to write everything to
}

func init() {
	// The tests end with the thread that has started them, so the main goroutine keeps its
	// thread.
	runtime.LockOSThread()
}

func main() {
	o := commandOptions{Options: options.Options{
		Expected: "integration/conformance/expected.txt", Suite: pinnedVersion, Build: "build/conformance", Deadline: 4 * time.Minute,
	}}
	o.Register(flag.CommandLine, "runtime-tools", "")
	flag.StringVar(&o.runc, "runc", "runc", "the `binary` husk is compared with")
	flag.StringVar(&o.json, "json", "", "write everything to this `file`")
	flag.Parse()
	options.Main("conformance", o.run)
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
	suite, err := o.prepareSuite(ctx)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "husk-conformance-")
	if err != nil {
		return err
	}
	// Tests with user namespaces need access to their root filesystem for other users.
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
	if o.Suite == pinnedVersion {
		r.Missing = expected.without(suite.tests)
	}
	return r.finish(o.Markdown, o.json)
}

// compare runs one test with each runtime, and again if it fails.
func (o *commandOptions) compare(ctx context.Context, suite *suite, test string, all expectations, runc, husk *subject) (verdict, error) {
	e, known := all[test]
	var v verdict
	for try := 1; try <= tries; try++ {
		if try == 1 || (known && !v.Runc.atLeast(e.runc)) {
			got, err := runc.run(ctx, suite, test, o.Deadline)
			if err != nil {
				return v, err
			}
			v.Runc = better(v.Runc, got, try)
		}
		if try == 1 || v.Verdict != pass {
			got, err := husk.run(ctx, suite, test, o.Deadline)
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

// better returns the better outcome of two tries.
func better(best, next outcome, try int) outcome {
	if try > 1 && best.atLeast(next) {
		next = best
	}
	next.Tries = try
	return next
}

// runtimes writes a wrapper script for each runtime, because the suite calls a runtime by one
// path, without global flags.
func (o *commandOptions) runtimes(ctx context.Context, scratch string) (husk, runc *subject, err error) {
	output, err := filepath.Abs(o.Build)
	if err != nil {
		return nil, nil, err
	}
	argv, err := o.HuskArgv()
	if err != nil {
		return nil, nil, err
	}
	wrap := func(name string, argv []string) (*subject, error) {
		path, err := exec.LookPath(argv[0])
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", name, err)
		}
		return newSubject(ctx, name, scratch, filepath.Join(output, name), append([]string{path}, argv[1:]...))
	}
	if husk, err = wrap("husk", argv); err != nil {
		return nil, nil, err
	}
	runc, err = wrap("runc", []string{o.runc})
	return husk, runc, err
}

// machine describes the machine on which the counts were taken.
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

// without returns the expected tests that do not exist.
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
