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

// caseTimeout bounds one case: some start a dozen emulated machines.
var caseTimeout = 3 * time.Minute

// runtimes in this order: a case that runc does not pass says nothing about husk.
var runtimes = []string{"runc", "husk"}

func TestDocker(t *testing.T) { testEngine(t, startDocker) }
func TestPodman(t *testing.T) { testEngine(t, startPodman) }

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
					key := e.name + " " + runtime + " " + c.name
					results.set(c.name, runtime, verdict(failure, time.Since(began)), exceptions[key])
					switch reason := exceptions[key]; {
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

// importImage makes the image box of busybox and the test program.
func (e *engine) importImage(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	shell(t, fmt.Sprintf(`set -eu
cd %s
mkdir -p bin etc tmp proc sys dev root var
cp "$(command -v busybox)" bin/busybox
chroot . /bin/busybox --install -s /bin
cp %s bin/testprog
chmod 1777 tmp
printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n' >etc/passwd
printf 'root:x:0:\nuser:x:1000:\n' >etc/group
printf image >etc/marker
%s
tar -c . | engine import -c 'CMD sh' -c 'ENV PATH=/bin' - box
`, dir, testprog, e.prelude))
}

var serial atomic.Int32

// run returns what went wrong, with what the script printed.
func (e *engine) run(t *testing.T, c testCase) error {
	prelude, err := os.ReadFile(filepath.Join("cases", "prelude.sh"))
	if err != nil {
		return err
	}
	number := serial.Add(1)
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace")
	head := e.prelude + fmt.Sprintf("n=t%d-x\nnet=%d\ndir=%s\ntestprog=%s\n", number, number%250, dir, testprog) + string(prelude)
	// What is traced may not mix with what commands print.
	failure := bash(head + "exec 9>" + trace + "\nBASH_XTRACEFD=9\nset -x\n" + c.script)
	if failure != nil {
		failure = fmt.Errorf("%w\n%s", failure, tail(trace))
	}
	if err := bash(head + e.cleanUp); err != nil && failure == nil {
		failure = fmt.Errorf("clean up: %w", err)
	}
	return failure
}

func bash(script string) error {
	ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("not done within %s", caseTimeout)
	case errors.Is(err, exec.ErrWaitDelay):
		// A script may leave a process that holds its output; its verdict counts.
		err = nil
	}
	if err != nil {
		text := out.String()
		return fmt.Errorf("%w\n%s", err, text[max(0, len(text)-3000):])
	}
	return nil
}

// table is what one engine gave: a row for each case.
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
		r.rows[name]["reason"] += reason
	}
}

func (r *table) write(t *testing.T) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n\n| case | runc | husk | |\n|---|---|---|---|\n", r.engine, r.version)
	for _, name := range r.names {
		row := r.rows[name]
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, row["runc"], row["husk"], row["reason"])
	}
	fmt.Print(b.String())
	if err := os.WriteFile(filepath.Join(outDir, "engines-"+r.engine+".md"), []byte(b.String()), 0o644); err != nil {
		t.Error(err)
	}
}
