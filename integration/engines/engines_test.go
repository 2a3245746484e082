//go:build integration

package engines

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// caseTimeout bounds one case. Some cases start a dozen emulated machines.
var caseTimeout = 3 * time.Minute

// runtimes are in this order because a case that fails with runc says nothing about husk.
var runtimes = []string{"runc", "husk"}

func TestDocker(t *testing.T) { testEngine(t, docker{name: "docker", root: machine}.start) }

func TestDocker26(t *testing.T) {
	testEngine(t, docker{name: "docker26", root: debian13, cases: []string{"compose.sh"}}.start)
}

// TestDocker29 tests a Docker that wires the network between create and start.
func TestDocker29(t *testing.T) {
	testEngine(t, docker{name: "docker29", root: debian13, bin: builtPrograms(), cases: []string{"compose.sh"}}.start)
}

func TestPodman(t *testing.T)  { testEngine(t, podman{name: "podman", root: machine}.start) }
func TestPodman5(t *testing.T) { testEngine(t, podman{name: "podman5", root: debian13}.start) }

func TestCtr(t *testing.T)   { testEngine(t, ctr{name: "ctr", root: machine}.start) }
func TestCtr17(t *testing.T) { testEngine(t, ctr{name: "ctr17", root: debian13}.start) }
func TestCtr2(t *testing.T) {
	testEngine(t, ctr{name: "ctr2", root: debian13, bin: builtPrograms()}.start)
}

func testEngine(t *testing.T, start func(*testing.T, string) *engine) {
	exceptions, err := readExceptions()
	if err != nil {
		t.Fatal(err)
	}
	results := &table{rows: map[string]map[string]string{}}
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			e := start(t, runtime)
			t.Cleanup(e.stop)
			results.engine, results.version = e.name, e.version
			e.importImage(t)
			for _, c := range e.cases(t) {
				results.order(c.name)
				t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
					if !c.alone {
						t.Parallel()
					}
					began := time.Now()
					failure := e.run(t, c)
					reason := exceptions.reason(e.name, runtime, c.name)
					results.set(c.name, runtime, verdict(failure, time.Since(began)), reason)
					switch {
					case failure == nil && reason != "" && runtime == "husk":
						t.Errorf("passes, though exceptions.txt says: %s", reason)
					case failure != nil && reason == "":
						t.Error(failure)
					case failure != nil:
						t.Logf("fails as expected (%s): %v", reason, failure)
					}
				})
			}
		})
	}
	results.write(t)
}

func verdict(failure error, took time.Duration) string {
	word := "ok"
	if failure != nil {
		word = "fails"
	}
	return fmt.Sprintf("%s %.1f s", word, took.Seconds())
}

// cases are those of the engine.
func (e *engine) cases(t *testing.T) []testCase {
	t.Helper()
	var all []testCase
	for _, file := range e.caseFiles {
		cases, err := readCases(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, cases...)
	}
	return all
}

var serial atomic.Int32

// run runs a case and returns what went wrong, with what the script printed.
func (e *engine) run(t *testing.T, c testCase) error {
	prelude, err := os.ReadFile(filepath.Join("cases", "prelude.sh"))
	if err != nil {
		return err
	}
	number := serial.Add(1)
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace")
	head := e.prelude + fmt.Sprintf("n=t%d-x\nnet=%d\ndir=%s\ntestprog=%s\nhusk=%s\nsettings=%s\nrepeats=%d\n",
		number, number%250, dir, testprog, huskPath, settings, repeats) + string(prelude)
	// The trace must not be mixed with what commands print.
	failure := e.root.bash(c.timeout(), head+"exec 9>"+trace+"\nBASH_XTRACEFD=9\nset -x\n"+c.script)
	if failure != nil {
		failure = fmt.Errorf("%w\n%s", failure, tail(trace))
	}
	if err := e.root.bash(caseTimeout, head+e.cleanUp); err != nil && failure == nil {
		failure = fmt.Errorf("clean up: %w", err)
	}
	return failure
}

func (r *root) bash(timeout time.Duration, script string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	args := r.command("bash", "-c", script)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("not done within %s", timeout)
	case errors.Is(err, exec.ErrWaitDelay):
		// A script may leave a process that holds its output. Only its exit code counts.
		err = nil
	}
	if err != nil {
		text := out.String()
		return fmt.Errorf("%w\n%s", err, text[max(0, len(text)-3000):])
	}
	return nil
}

// table has the results of one engine, with a row for each case.
type table struct {
	mu              sync.Mutex
	engine, version string
	names           []string
	rows            map[string]map[string]string
}

func (r *table) order(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rows[name] == nil {
		r.names = append(r.names, name)
		r.rows[name] = map[string]string{}
	}
}

func (r *table) set(name, runtime, verdict, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows[name][runtime] = verdict
	if reason != "" {
		r.rows[name]["reason"] += runtime + ": " + reason + ". "
	}
}

func (r *table) write(t *testing.T) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n\n| case | runc | husk | |\n|---|---|---|---|\n", r.engine, r.version)
	for _, name := range r.names {
		row := r.rows[name]
		if len(row) == 0 { // not selected
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, row["runc"], row["husk"], row["reason"])
	}
	fmt.Print(b.String())
	if err := os.WriteFile(filepath.Join(outDir, "engines-"+r.engine+".md"), []byte(b.String()), 0o644); err != nil {
		t.Error(err)
	}
}
