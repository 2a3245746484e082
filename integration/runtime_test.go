//go:build integration

package integration

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// env is the world of one test: a directory, a --root in it, and containers with unique ids. At
// its end the leak check runs.
type env struct {
	t    *testing.T
	dir  string // short, because paths of unix sockets below it must not be too long
	root string
	tag  string // part of every container id of this test
	// runtime is the absolute path of the program under test.
	runtime string
	// settings is husk's settings file for this test; empty: the suite's.
	settings string

	mu         sync.Mutex
	next       int
	namespaces []*netNS // made by the test
}

func newEnv(t *testing.T) *env {
	t.Helper()
	dir, err := os.MkdirTemp("", "hi-*x") // with x no tag is the beginning of another
	if err != nil {
		t.Fatal(err)
	}
	e := &env{t: t, dir: dir, root: filepath.Join(dir, "root"), tag: filepath.Base(dir), runtime: runtimePath}
	t.Cleanup(e.close)
	return e
}

func (e *env) number() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.next++
	return e.next
}

// id returns a container id that is unique on this machine.
func (e *env) id() string { return fmt.Sprintf("%s-%d", e.tag, e.number()) }

// path returns an unused path in the test's directory.
func (e *env) path(name string) string {
	return filepath.Join(e.dir, fmt.Sprintf("%s%d", name, e.number()))
}

func (e *env) mkdir(name string) string {
	e.t.Helper()
	dir := e.path(name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		e.t.Fatal(err)
	}
	return dir
}

// call is how the runtime is called, apart from its arguments.
type call struct {
	dir    string
	stdin  *os.File // nil is /dev/null
	pipe   bool     // stdin is a pipe whose other end is process.stdin
	stdout *os.File // nil: a pipe that is read into process.stdout
	stderr *os.File
	extra  []*os.File // inherited as 3, 4, ...
	env    []string   // nil: this process's
	attr   *unix.SysProcAttr
	via    []string // a command that executes the runtime; the runtime's command line is appended
}

// process is a started call of the runtime.
type process struct {
	e              *env
	args           []string
	cmd            *exec.Cmd
	stdin          *os.File
	stdout, stderr *stream
	logPath        string
	done           chan struct{}    // the runtime's process has been reaped
	status         *unix.WaitStatus // set by a tracer instead of cmd
}

// start runs "RUNTIME --root ... --log ... ARGS" without waiting for it.
func (e *env) start(c call, args ...string) *process {
	e.t.Helper()
	p, ours := e.prepare(c, args...)
	err := p.cmd.Start()
	for _, f := range ours {
		f.Close()
	}
	if err != nil {
		e.t.Fatalf("start %s: %v", p, err)
	}
	go func() {
		// cmd has files and not writers, so Wait does not wait for pipes.
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p
}

// prepare makes what start starts. The caller closes the files when it is started.
func (e *env) prepare(c call, args ...string) (_ *process, ours []*os.File) {
	e.t.Helper()
	p := &process{e: e, args: args, logPath: e.path("log"), done: make(chan struct{})}
	global := []string{"--root", e.root, "--log", p.logPath, "--log-format", "json"}
	if settings != "" {
		global = append(global, "--config", cmp.Or(e.settings, settings))
	}
	p.cmd = exec.Command(e.runtime, append(global, args...)...)
	if len(c.via) > 0 {
		p.cmd = exec.Command(c.via[0], append(append(c.via[1:len(c.via):len(c.via)], e.runtime), p.cmd.Args[1:]...)...)
	} else {
		p.cmd.Args[0] = runtimeName // usage errors print it
	}
	p.cmd.Dir, p.cmd.Stdin, p.cmd.ExtraFiles, p.cmd.Env = c.dir, nil, c.extra, c.env
	p.cmd.SysProcAttr = c.attr
	if c.stdin != nil {
		p.cmd.Stdin = c.stdin
	}
	if c.pipe {
		r, w := e.osPipe()
		p.cmd.Stdin, p.stdin = r, w
		ours = append(ours, r)
	}
	p.stdout, ours = e.output(&p.cmd.Stdout, c.stdout, ours)
	p.stderr, ours = e.output(&p.cmd.Stderr, c.stderr, ours)
	return p, ours
}

func (e *env) output(dst *io.Writer, file *os.File, ours []*os.File) (*stream, []*os.File) {
	if file != nil {
		*dst = file
		return nil, ours
	}
	r, w := e.osPipe()
	*dst = w
	return newStream(r), append(ours, w)
}

func (e *env) osPipe() (r, w *os.File) {
	e.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		e.t.Fatal(err)
	}
	return r, w
}

func (p *process) String() string { return runtimeName + " " + strings.Join(p.args, " ") }

// code waits for the runtime's process only, not for its pipes.
func (p *process) code() int {
	p.e.t.Helper()
	select {
	case <-p.done:
	case <-time.After(testTimeout):
		_ = p.cmd.Process.Kill()
		p.e.t.Fatalf("%s did not end in %v; stderr: %s", p, testTimeout, p.stderr)
	}
	status := p.status
	if status == nil {
		ws := unix.WaitStatus(p.cmd.ProcessState.Sys().(syscall.WaitStatus))
		status = &ws
	}
	if status.Signaled() {
		p.e.t.Fatalf("%s died: %v; stderr: %s", p, status.Signal(), p.stderr)
	}
	return status.ExitStatus()
}

// wait waits for the process and for end-of-file on its output. Engines do so too, and hang if
// a helper process has inherited a pipe.
func (p *process) wait() *result {
	p.e.t.Helper()
	r := &result{e: p.e, what: p.String(), code: p.code()}
	for _, s := range []*stream{p.stdout, p.stderr} {
		if s == nil {
			continue
		}
		if err := s.waitEOF(testTimeout); err != nil {
			p.e.t.Fatalf("%s ended, but something still holds its output: %v", p, err)
		}
	}
	r.stdout, r.stderr, r.log = p.stdout.String(), p.stderr.String(), p.log()
	return r
}

func (p *process) log() string {
	data, err := os.ReadFile(p.logPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.e.t.Error(err)
	}
	return string(data)
}

// result is a finished call.
type result struct {
	e                   *env
	what                string
	code                int
	stdout, stderr, log string
}

// do calls the runtime with stdin from /dev/null and waits.
func (e *env) do(args ...string) *result {
	e.t.Helper()
	return e.start(call{}, args...).wait()
}

// detach calls the runtime and waits for its process only: what it starts keeps its output. The
// pid in the pid file becomes a child of this process.
func (e *env) detach(pidFile string, args ...string) (*process, <-chan int) {
	e.t.Helper()
	p := e.start(call{}, args...)
	if code := p.code(); code != 0 {
		e.t.Fatalf("%s: exit code %d\nstderr: %s\nlog: %s", p, code, p.stderr, p.log())
	}
	return p, reap(readPID(e.t, pidFile))
}

// ok calls the runtime, fails the test if it fails, and returns its stdout.
func (e *env) ok(args ...string) string {
	e.t.Helper()
	return e.do(args...).is(0).stdout
}

// is checks the exit code.
func (r *result) is(code int) *result {
	r.e.t.Helper()
	if r.code != code {
		r.e.t.Fatalf("%s: exit code %d, want %d\nstdout: %s\nstderr: %s", r.what, r.code, code, r.stdout, r.stderr)
	}
	return r
}

// fails checks a failure as engines see it: exit code, text on stderr, and exactly one line of
// JSON in the log. Texts are runc's, in which the runtime's name stands for "runc".
func (r *result) fails(code int, text string) *result {
	r.e.t.Helper()
	want := strings.ReplaceAll(text, "runc", runtimeName)
	if r.code != code || strings.TrimSpace(r.stderr) != want {
		r.e.t.Errorf("%s:\n got exit code %d, stderr %q\nwant exit code %d, stderr %q", r.what, r.code, r.stderr, code, want)
	}
	r.oneLogLine(want)
	return r
}

func (r *result) oneLogLine(want string) {
	r.e.t.Helper()
	var entry struct{ Level, Msg, Time string }
	if err := json.Unmarshal([]byte(r.log), &entry); err != nil { // a second line is an error too
		r.e.t.Errorf("%s: log is not exactly one line of JSON: %q", r.what, r.log)
		return
	}
	if _, err := time.Parse(time.RFC3339, entry.Time); err != nil {
		r.e.t.Errorf("%s: log time: %v", r.what, err)
	}
	if entry.Level != "error" || strings.TrimSpace(entry.Msg) != want {
		r.e.t.Errorf("%s: log says %s %q, want error %q", r.what, entry.Level, entry.Msg, want)
	}
}

// container is a created container whose exit code this process waits for, as a shim or conmon
// does.
type container struct {
	e              *env
	id             string
	bundle         string
	pid            int
	stdin          *os.File
	stdout, stderr *stream
	exit           <-chan int
}

// create creates a container, which must succeed.
func (e *env) create(bundle string, flags ...string) *container {
	e.t.Helper()
	return e.createWith(call{}, bundle, flags...)
}

func (e *env) createWith(c call, bundle string, flags ...string) *container {
	e.t.Helper()
	id, pidFile := e.id(), e.path("pid")
	args := append([]string{"create", "--bundle", bundle, "--pid-file", pidFile}, flags...)
	p := e.start(c, append(args, id)...)
	if code := p.code(); code != 0 {
		e.t.Fatalf("%s: exit code %d\nstderr: %s\nlog: %s", p, code, p.stderr, p.log())
	}
	pid := readPID(e.t, pidFile)
	return &container{
		e: e, id: id, bundle: bundle, pid: pid,
		stdin: p.stdin, stdout: p.stdout, stderr: p.stderr, exit: reap(pid),
	}
}

// createStarted creates and starts a container.
func (e *env) createStarted(bundle string, flags ...string) *container {
	e.t.Helper()
	c := e.create(bundle, flags...)
	e.ok("start", c.id)
	return c
}

// readPID reads a pid file, which contains a decimal number and nothing else.
func readPID(t *testing.T, path string) int {
	t.Helper()
	text := readFile(t, path)
	pid, err := strconv.Atoi(text)
	if err != nil || pid <= 0 {
		t.Fatalf("pid file holds %q, want a decimal number and nothing else", text)
	}
	return pid
}

// reap waits for a process that has become this process's child. It returns 128+n for signal n,
// and -1 for a process that is no child.
func reap(pid int) <-chan int {
	exit := make(chan int, 1)
	go func() {
		for {
			var status unix.WaitStatus
			_, err := unix.Wait4(pid, &status, 0, nil)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				exit <- -1
			case status.Signaled():
				exit <- 128 + int(status.Signal())
			default:
				exit <- status.ExitStatus()
			}
			return
		}
	}()
	return exit
}

// exits waits for the process in the pid file and checks its exit code, and then waits for
// end-of-file on the container's output.
func (c *container) exits(code int) {
	c.e.t.Helper()
	got := c.e.exitOf(c.exit)
	if got != code {
		c.e.t.Errorf("the container's process (pid %d) ended with %d, want %d\nstdout: %s\nstderr: %s", c.pid, got, code, c.stdout, c.stderr)
	}
	for _, s := range []*stream{c.stdout, c.stderr} {
		if s == nil {
			continue
		}
		if err := s.waitEOF(testTimeout); err != nil {
			c.e.t.Errorf("container %s ended, but something still holds its output: %v", c.id, err)
		}
	}
}

func (e *env) exitOf(exit <-chan int) int {
	e.t.Helper()
	select {
	case code := <-exit:
		return code
	case <-time.After(testTimeout):
		e.t.Fatalf("the process did not end in %v", testTimeout)
		return -1
	}
}

// stop ends a container in whatever state it is.
func (c *container) stop() {
	c.e.t.Helper()
	c.e.ok("delete", "--force", c.id)
	c.e.exitOf(c.exit)
}

// exec runs a command in the container and waits.
func (c *container) exec(args ...string) *result {
	c.e.t.Helper()
	return c.e.do(append([]string{"exec", c.id}, args...)...)
}

// status is what `state` and each element of `list` print.
type status struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations"`
	Owner       string            `json:"owner"`
}

func (e *env) state(id string) status {
	e.t.Helper()
	var s status
	mustJSON(e.t, e.ok("state", id), &s)
	return s
}

func (c *container) status() string {
	c.e.t.Helper()
	return c.e.state(c.id).Status
}

func mustJSON(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("not the expected JSON: %v\n%s", err, text)
	}
}

// eventually polls for something for which the runtime has no event.
func eventually(t *testing.T, what string, limit time.Duration, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not so after %v", what, limit)
		case <-tick.C:
		}
	}
}
