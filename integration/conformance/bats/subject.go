package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Results of a test.
const (
	passed   = "pass"
	failed   = "FAIL"
	skipped  = "skip"
	timedOut = "TIMEOUT"
)

type outcome struct {
	is   string // empty: the test did not run
	why  string // the reason of a skip
	took time.Duration
}

func (o outcome) String() string {
	if o.is == "" {
		return "-"
	}
	return o.is
}

// subject is a runtime under test.
type subject struct {
	path   string
	output string // directory for what its tests print
}

func newSubject(path, output string) (*subject, error) {
	return &subject{path, output}, errors.Join(os.RemoveAll(output), os.MkdirAll(output, 0o755))
}

// inside is a script that runs one test in new namespaces. The suite kills processes, mounts
// over directories and moves network devices, and a test that hangs must leave nothing. Several
// tests need a controlling terminal, which script(1) provides. Files are in a tmpfs, which ends
// with the namespaces.
const inside = `
set -e
mount -t tmpfs -o mode=755 husk-bats "$TMPDIR"
ip link set lo up
cd "$SUITE"
exec script -qefc 'exec bats --tap --filter "$FILTER" "$FILE" >"$OUTPUT" 2>&1 </dev/tty' /dev/null
`

// run runs one test. An error means that it could not be run; the test's result is in the
// outcome.
func (s *subject) run(ctx context.Context, suite *suite, t test, deadline time.Duration) (outcome, error) {
	temp, err := os.MkdirTemp("", "bats-")
	if err != nil {
		return outcome{}, err
	}
	// Its content was in a mount of another mount namespace, which is gone.
	defer os.Remove(temp)
	output := filepath.Join(s.output, fileName(t))
	limited, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	cmd := exec.CommandContext(limited, "unshare", "--mount", "--pid", "--net", "--ipc", "--uts",
		"--fork", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-c", inside)
	cmd.Env = append(os.Environ(),
		"RUNC="+s.path, "SUITE="+suite.integration(), "FILE="+t.file, "OUTPUT="+output, "TMPDIR="+temp,
		"FILTER=^"+regexp.QuoteMeta(t.name)+" *$")
	// A pipe to which nobody writes. At the end of its input script(1) would send an end of
	// file to the tests' terminal.
	stdin, nobody, err := os.Pipe()
	if err != nil {
		return outcome{}, err
	}
	defer stdin.Close()
	defer nobody.Close()
	cmd.Stdin = stdin
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	began := time.Now()
	runErr := cmd.Run()
	took := time.Since(began)
	removeCgroups()
	switch {
	case ctx.Err() != nil:
		return outcome{}, errors.New("interrupted")
	case limited.Err() != nil:
		return outcome{is: timedOut, took: took}, nil
	}
	text, err := os.ReadFile(output)
	if err != nil {
		return outcome{}, errors.Join(runErr, fmt.Errorf("bats did not run: %s", complaint.Bytes()), err)
	}
	o, err := parse(string(text))
	if err != nil {
		return outcome{}, fmt.Errorf("%w: %s", err, text)
	}
	o.took = took
	return o, nil
}

func fileName(t test) string {
	return strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' {
			return '_'
		}
		return r
	}, strings.TrimSuffix(t.file, ".bats")+"."+t.name) + ".tap"
}

var result = regexp.MustCompile(`(?m)^(not ok|ok) 1 (.*)$`)

// parse reads what bats prints for its one test.
func parse(tap string) (outcome, error) {
	m := result.FindStringSubmatch(tap)
	switch {
	case m == nil:
		return outcome{}, errors.New("bats gave no result")
	case m[1] == "not ok":
		return outcome{is: failed}, nil
	}
	if _, why, skip := strings.Cut(m[2], " # skip"); skip {
		return outcome{is: skipped, why: strings.TrimSpace(why)}, nil
	}
	return outcome{is: passed}, nil
}

// removeCgroups removes empty cgroups that a killed test, or one whose teardown failed, has
// left.
func removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/runc-cgroups-integration-test", "/sys/fs/cgroup/*/runc-cgroups-integration-test"} {
		tops, err := filepath.Glob(pattern)
		if err != nil {
			continue
		}
		for _, top := range tops {
			var dirs []string
			_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				_ = unix.Rmdir(dirs[i])
			}
		}
	}
}
