//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestList(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	if out := e.ok("list", "-q"); out != "" {
		t.Errorf("list -q of nothing: %q", out)
	}
	if out := strings.TrimSpace(e.ok("list", "--format", "json")); out != "null" {
		t.Errorf("list of nothing as JSON: %q, want null", out)
	}
	c := e.create(e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) {
		s.Annotations = map[string]string{"com.example.key": "value"}
	}))
	if out := e.ok("list", "--quiet"); out != c.id+"\n" {
		t.Errorf("list -q: %q", out)
	}
	var listed []status
	mustJSON(t, e.ok("list", "-f", "json"), &listed)
	if len(listed) != 1 || listed[0].ID != c.id || listed[0].PID != c.pid || listed[0].Status != "created" || listed[0].Bundle != c.bundle {
		t.Errorf("list as JSON: %+v", listed)
	}
	if got := e.state(c.id).Annotations["com.example.key"]; got != "value" {
		t.Errorf("annotation in state: %q", got)
	}
	table := strings.Split(e.ok("list"), "\n")
	if head := strings.Fields(table[0]); !slices.Equal(head, []string{"ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"}) {
		t.Errorf("head of the table: %v", head)
	}
	row := strings.Fields(table[1])
	if len(row) != 6 || row[0] != c.id || row[1] != strconv.Itoa(c.pid) || row[2] != "created" || row[3] != c.bundle || row[5] != "root" {
		t.Errorf("row of the table: %v", row)
	}
	c.stop()
}

// TestListIgnoresStrangers: the root directory is shared with other runtimes, whose directories
// are left alone.
func TestListIgnoresStrangers(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	if err := os.MkdirAll(filepath.Join(e.root, "stranger"), 0o700); err != nil {
		t.Fatal(err)
	}
	if runtimeName != "runc" { // runc lists every directory, with an error for foreign ones
		if out := e.ok("list", "-q"); out != "" {
			t.Errorf("list -q: %q", out)
		}
		e.do("state", "stranger").fails(1, missing)
	}
	if err := os.Remove(filepath.Join(e.root, "stranger")); err != nil {
		t.Error(err)
	}
}

func TestPs(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	var pids []int
	mustJSON(t, e.ok("ps", "--format", "json", c.id), &pids)
	if !slices.Equal(pids, []int{c.pid}) {
		t.Errorf("ps: %v, want [%d]", pids, c.pid)
	}
	pidFile := e.path("pid")
	_, exit := e.detach(pidFile, "exec", "--detach", "--pid-file", pidFile, c.id, "sleep", "1001")
	execPID := readPID(t, pidFile)
	mustJSON(t, e.ok("ps", "-f", "json", c.id), &pids)
	if !slices.Contains(pids, c.pid) || !slices.Contains(pids, execPID) {
		t.Errorf("ps: %v, want %d and the exec's %d in it", pids, c.pid, execPID)
	}
	// As `docker top` shows it: the lines of the host's ps for these pids.
	table := e.ok("ps", c.id)
	for _, w := range []string{"PID", "sleep 1000", "sleep 1001"} {
		if !strings.Contains(table, w) {
			t.Errorf("ps table lacks %q:\n%s", w, table)
		}
	}
	if custom := e.ok("ps", c.id, "-o", "pid,comm"); !strings.Contains(custom, strconv.Itoa(c.pid)) || strings.Contains(custom, "UID") {
		t.Errorf("ps -o pid,comm:\n%s", custom)
	}
	c.stop()
	e.exitOf(exit)
}

func TestSpec(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle()
	config := filepath.Join(bundle, "config.json")
	r := e.do("spec", "--bundle", bundle).is(1)
	if !strings.Contains(r.stderr, "exists") {
		t.Errorf("spec over an existing file: %q", r.stderr)
	}
	if err := os.Remove(config); err != nil {
		t.Fatal(err)
	}
	e.ok("spec", "--bundle", bundle)
	var spec specs.Spec
	mustJSON(t, readFile(t, config), &spec)
	if spec.Process == nil || spec.Root == nil || spec.Linux == nil || !spec.Process.Terminal || !slices.Equal(spec.Process.Args, []string{"sh"}) {
		t.Errorf("spec: %+v", spec)
	}
	// The config that spec writes must run.
	spec.Process.Terminal = false
	spec.Process.Args = []string{"echo", "from spec"}
	writeSpec(t, bundle, &spec)
	if out := e.ok("run", "--bundle", bundle, e.id()); out != "from spec\n" {
		t.Errorf("run of the written spec: %q", out)
	}
}

func TestFeaturesAndVersion(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	lines := strings.Split(e.ok("--version"), "\n")
	if len(lines) < 2 || !versionLine.MatchString(lines[0]) {
		t.Fatalf("--version: %q", lines)
	}
	for _, w := range []string{"commit: ", "spec: "} {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, w) }) {
			t.Errorf("--version has no line %q: %q", w, lines)
		}
	}
	if e.ok("-v") != e.ok("--version") {
		t.Error("-v and --version differ")
	}
	var f struct {
		OCIVersionMin string   `json:"ociVersionMin"`
		OCIVersionMax string   `json:"ociVersionMax"`
		Hooks         []string `json:"hooks"`
		MountOptions  []string `json:"mountOptions"`
		Linux         struct {
			Namespaces   []string `json:"namespaces"`
			Capabilities []string `json:"capabilities"`
		} `json:"linux"`
	}
	mustJSON(t, e.ok("features"), &f)
	if f.OCIVersionMin == "" || f.OCIVersionMax == "" || !slices.Contains(f.MountOptions, "rbind") ||
		!slices.Contains(f.Linux.Namespaces, "pid") || !slices.Contains(f.Linux.Capabilities, "CAP_CHOWN") ||
		!slices.Contains(f.Hooks, "prestart") {
		t.Errorf("features: %+v", f)
	}
}

func TestEventsStats(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withScript("sleep 1000 & sleep 1000")))
	var event struct {
		Type, ID string
		Data     struct {
			CPU struct {
				Usage struct{ Total uint64 }
			}
			Memory struct {
				Usage struct{ Usage, Limit uint64 }
			}
			Pids struct{ Current, Limit uint64 }
		}
	}
	eventually(t, "two processes are counted", testTimeout, func() bool {
		out := e.ok("events", "--stats", c.id)
		if strings.Count(out, "\n") != 1 {
			t.Fatalf("events --stats: %q, want one line", out)
		}
		mustJSON(t, out, &event)
		return event.Data.Pids.Current >= 2
	})
	if event.Type != "stats" || event.ID != c.id || event.Data.CPU.Usage.Total == 0 || event.Data.Memory.Usage.Usage == 0 {
		t.Errorf("events: %+v", event)
	}

	p := e.start(call{}, "events", "--interval", "200ms", c.id)
	p.stdout.expectN(t, "\n", 2)
	e.ok("kill", c.id, "KILL")
	c.exits(137)
	e.ok("delete", c.id)
	p.wait() // events ends with the container
	for line := range strings.Lines(p.stdout.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("events: not JSON: %q", line)
		}
	}
}

func TestPauseStopsProcesses(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withScript("while :; do echo tick; sleep 0.05; done")))
	c.stdout.expectN(t, "tick\n", 3)
	e.ok("pause", c.id)
	eventually(t, "output has stopped", testTimeout, func() bool {
		before := len(c.stdout.String())
		err := c.stdout.until(leakGrace/4, func(text string, _ bool) bool { return len(text) > before })
		return err != nil
	})
	// A process that is added to a paused container is frozen too. Nobody can know whether it
	// would have ended by itself, so the test checks that it does not end while the container
	// is paused.
	late := e.start(call{}, "exec", "--ignore-paused", c.id, "echo", "late")
	if err := late.stdout.waitEOF(leakGrace / 4); err == nil {
		t.Errorf("exec --ignore-paused ended in a paused container: %q, %q", late.stdout, late.stderr)
	}
	e.ok("resume", c.id)
	if r := late.wait(); r.code != 0 || r.stdout != "late\n" {
		t.Errorf("exec --ignore-paused after resume: exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	c.stdout.expectN(t, "tick\n", strings.Count(c.stdout.String(), "tick\n")+3)
	if got := c.status(); got != "running" {
		t.Errorf("state after resume: %s", got)
	}
	// delete --force deletes a paused container. The flag may come after the id.
	e.ok("pause", c.id)
	e.ok("delete", c.id, "--force")
	c.exits(137)
}

var cgroupMemoryFiles = regexp.MustCompile(`\d+`)

// memoryLimit reads the limit as the container sees it, with either version of cgroups.
const memoryLimit = `cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes`

func TestUpdate(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), withNamespace(specs.CgroupNamespace, ""), func(s *specs.Spec) {
		limit := int64(64 << 20)
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	}))
	limit := func() string { return cgroupMemoryFiles.FindString(c.exec("sh", "-c", memoryLimit).is(0).stdout) }
	if got := limit(); got != strconv.Itoa(64<<20) {
		t.Errorf("limit at the start: %s", got)
	}
	e.ok("update", "--memory", strconv.Itoa(48<<20), c.id)
	if got := limit(); got != strconv.Itoa(48<<20) {
		t.Errorf("limit after update --memory: %s", got)
	}

	// containerd sends --resources - with JSON on stdin, containerd 2 --resources=-.
	for i, args := range [][]string{{"update", "--resources", "-", c.id}, {"update", "--resources=-", c.id}} {
		want := strconv.Itoa((40 + i) << 20)
		p := e.start(call{pipe: true}, args...)
		if _, err := p.stdin.WriteString(`{"memory":{"limit":` + want + `}}`); err != nil {
			t.Fatal(err)
		}
		p.stdin.Close()
		p.wait().is(0)
		if got := limit(); got != want {
			t.Errorf("limit after %v: %s, want %s", args, got, want)
		}
	}
	file := e.path("resources")
	writeFile(t, file, `{"memory":{"limit":`+strconv.Itoa(36<<20)+`},"pids":{"limit":50}}`)
	e.ok("update", "--resources="+file, c.id)
	if got := limit(); got != strconv.Itoa(36<<20) {
		t.Errorf("limit after update from a file: %s", got)
	}
	p := e.start(call{pipe: true}, "update", "--resources", "-", c.id)
	if _, err := p.stdin.WriteString(`{bad`); err != nil {
		t.Fatal(err)
	}
	p.stdin.Close()
	if r := p.wait(); r.code == 0 {
		t.Error("update with bad JSON succeeded")
	}
	c.stop()
}

// TestUpdateBelowUsage: a limit below what is in use is refused and changes nothing.
func TestUpdateBelowUsage(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), withMemory(64)))
	for _, asked := range [][]string{{"--memory", "1"}, {"--memory", "64k"}} {
		r := e.do(append(append([]string{"update"}, asked...), c.id)...).is(1)
		if want := "unable to set memory limit to "; !strings.Contains(r.stderr, want) || !strings.Contains(r.stderr, "current usage: ") {
			t.Errorf("update %v: %q does not say %q", asked, r.stderr, want)
		}
	}
	c.exec("true").is(0)
	if c.status() != "running" {
		t.Errorf("the container is %s", c.status())
	}
	c.stop()
}

// TestRelativeRoot: --root may be relative to the caller's directory.
func TestRelativeRoot(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	bundle, id := e.bundle(withArgs("sleep", "1000")), e.id()
	e.root = "root"
	at := call{dir: e.dir}
	e.start(at, "run", "--detach", "--bundle", bundle, id).code()
	if r := e.start(at, "exec", id, "echo", "there").wait().is(0); r.stdout != "there\n" {
		t.Errorf("exec printed %q", r.stdout)
	}
	e.start(at, "delete", "--force", id).wait().is(0)
	e.root = filepath.Join(e.dir, "root")
}
