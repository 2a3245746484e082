//go:build integration

package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The most that a guest may cost the host, whatever it sends.
const (
	// madVerb bounds a verb. husk's own deadline for a call to the guest is 30 s.
	madVerb = 30*time.Second + 15*time.Second
	// madDelete bounds delete --force, which does not ask the guest for anything.
	madDelete = 10 * time.Second
	// madMemoryKiB bounds the memory (VmHWM) of a cli, a supervisor and an exec process.
	// Without a mad guest they use 20 to 35 MiB.
	madMemoryKiB = 96 << 10
	// madBoot is the boot_timeout, which bounds create. madSilence is that of guests that never
	// answer before Create. It is doubled, up to the longest, if the machine is so busy that it
	// passes before the guest has done its worst.
	madBoot           = 60 * time.Second
	madSilence        = 6 * time.Second
	madLongestSilence = 80 * time.Second
	// madAtOnce bounds the guests that boot at the same time.
	madAtOnce = 4
)

// madHusk builds a husk with the mad agent in place of its own. If nothing changes it is not
// linked again, so its memory template stays valid.
var madHusk = sync.OnceValues(func() (string, error) {
	dir, err := filepath.Abs("../build/mad")
	if err != nil {
		return "", err
	}
	source, err := filepath.Abs("..")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	agent, husk, overlay := filepath.Join(dir, "agent"), filepath.Join(dir, "husk"), filepath.Join(dir, "overlay.json")
	replace := map[string]map[string]string{"Replace": {filepath.Join(source, "host/bootimage/embedded/agent"): agent}}
	text, err := json.Marshal(replace)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(overlay, text, 0o644); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"-ldflags", "-s -w -X main.build=mad", "-o", agent, "./integration/madagent"},
		{"-overlay", overlay, "-ldflags", "-X main.build=mad", "-o", husk, "."},
	} {
		build := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-buildvcs=false"}, args...)...)
		build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build a husk with the mad agent: %w\n%s", err, out)
		}
	}
	return husk, nil
})

// madEnv returns an env that uses the mad husk.
func madEnv(t *testing.T) *env {
	t.Helper()
	husk, err := madHusk()
	if err != nil {
		t.Fatal(err)
	}
	e := newEnv(t)
	e.runtime = husk
	return e
}

// needMadHusk skips the test where no husk can be built.
func needMadHusk(t *testing.T) {
	t.Helper()
	needVM(t)
	if os.Getenv("HUSK_TESTPROG") != "" {
		t.Skip("there is no compiler in the KVM test bed")
	}
}

// madRun is one container with a mad guest.
type madRun struct {
	*env
	t        *testing.T
	mode     madMode
	settings string
	id       string
	pidFile  string
	memory   *memoryWatch
	output   *stream // the container's stderr
}

// runMad runs all verbs for a container with a guest of this mode, and checks the host's side.
func runMad(t *testing.T, mode madMode) {
	t.Helper()
	e := madEnv(t)
	values := map[string]string{"vsock": `"off"`, "boot_timeout": strconv.Quote(madBoot.String())}
	if mode.early {
		values["templates"], values["kernel_params"] = `"off"`, strconv.Quote("husk.mad="+mode.name)
	}
	if mode.silence > 0 {
		values["boot_timeout"] = strconv.Quote(mode.silence.String())
	}
	r := &madRun{env: e, t: t, mode: mode, settings: e.otherSettings(values), id: e.id(), pidFile: e.path("pid"), memory: watchMemory(t)}
	defer r.memory.stop()
	options := []specOption{withArgs("testprog")}
	if mode.terminal {
		options = append(options, withTerminal(), func(s *specs.Spec) { s.Process.ConsoleSize = &specs.Box{Height: 24, Width: 80} })
	}
	if !mode.early {
		options = append(options, withEnv("MAD="+mode.name))
	}
	bundle := e.bundle(append(options, mode.options(e)...)...)
	args := []string{"create", "--bundle", bundle, "--pid-file", r.pidFile}
	if mode.terminal {
		args = append(args, "--console-socket", e.consoleSocket().path)
	}
	create, created := r.verb(append(args, r.id)...)
	// After a flood the console has only the flood.
	if mode.silence > 0 && !strings.Contains(create.stderr, "plays ") && !strings.Contains(create.stderr, "flood mad") {
		if mode.silence == madLongestSilence {
			t.Errorf("create failed before the guest did: %s", create.stderr)
			return
		}
		mode.silence = min(2*mode.silence, madLongestSilence)
		r.memory.forget()
		runMad(t, mode)
		return
	}
	var exit <-chan int
	if created {
		pid := readPID(t, r.pidFile)
		r.memory.add(pid)
		exit = reap(pid)
		r.lifeOf()
	}
	if created && mode.exit != nil { // it ends by itself or by the last verb
		if code := e.exitOf(exit); code != *mode.exit {
			t.Errorf("the container's process ended with %d, want %d", code, *mode.exit)
		}
	}
	r.delete()
	if created {
		if mode.exit == nil {
			e.exitOf(exit)
		}
		// It is the container's output, and husk must not write to it.
		if text := r.output.String(); strings.Contains(text, "level=") || strings.Contains(text, "goroutine ") {
			t.Errorf("the container's standard error has lines of husk's: %.1000q", text)
		}
	}
}

// lifeOf calls every verb once.
func (r *madRun) lifeOf() {
	for _, args := range [][]string{
		{"start", r.id},
		{"state", r.id},
		{"exec", r.id, "true"},
		{"pause", r.id},
		{"resume", r.id},
		{"update", "--pids-limit", "100", r.id},
		{"events", "--stats", r.id},
		{"ps", r.id},
		{"list"},
		{"kill", r.id, "KILL"},
	} {
		if slices.Contains(r.mode.skips, args[0]) {
			continue
		}
		if _, ok := r.verb(args...); !ok && args[0] == "start" {
			break
		}
	}
}

// verb calls husk, checks what must be true of each call, and checks that it fails if the mode
// makes it fail.
func (r *madRun) verb(args ...string) (*result, bool) {
	t := r.t
	t.Helper()
	began := time.Now()
	p := r.start(call{}, append([]string{"--config", r.settings}, args...)...)
	r.memory.add(p.cmd.Process.Pid)
	code := p.code()
	if took := time.Since(began); took > madVerb && args[0] != "create" { // create has boot_timeout
		t.Errorf("%s took %v", args[0], took)
	}
	res := &result{e: r.env, what: p.String(), code: code, log: p.log()}
	if args[0] == "create" && code == 0 { // its output is the container's from now on
		r.output = p.stderr
	} else {
		for _, s := range []*stream{p.stdout, p.stderr} {
			if err := s.waitEOF(madDelete); err != nil {
				t.Errorf("%s: %v", args[0], err)
			}
		}
		res.stdout, res.stderr = p.stdout.String(), p.stderr.String()
	}
	if code != 0 {
		t.Logf("%s: %d: %.300s", args[0], code, res.stderr)
	}
	for name, text := range map[string]string{"stderr": res.stderr, "log": res.log, "stdout": res.stdout} {
		if bad := unsafeText(text); bad != "" {
			t.Errorf("%s: %s has %s", args[0], name, bad)
		}
		if strings.Contains(text, "goroutine ") || strings.Contains(text, "/proc/self/fd") || strings.Contains(text, "ttrpc:") {
			t.Errorf("%s: %s is not for a user: %.1000s", args[0], name, text)
		}
		if len(text) > 64<<10 {
			t.Errorf("%s: %d bytes on %s", args[0], len(text), name)
		}
	}
	switch {
	case slices.Contains(r.mode.fails, args[0]) && code == 0:
		t.Errorf("%s succeeded with a guest that did not do it", args[0])
	case slices.Contains(r.mode.works, args[0]) && code != 0:
		t.Errorf("%s: exit code %d: %s", args[0], code, res.stderr)
	}
	if r.mode.says != "" && slices.Contains(r.mode.fails, args[0]) && !strings.Contains(res.stderr, r.mode.says) {
		t.Errorf("%s says %.1000q, want %q", args[0], res.stderr, r.mode.says)
	}
	return res, code == 0
}

func (r *madRun) delete() {
	r.t.Helper()
	r.supervisorLog()
	began := time.Now()
	res := r.do("--config", r.settings, "delete", "--force", r.id)
	if res.code != 0 {
		r.t.Errorf("delete --force: exit code %d: %s", res.code, res.stderr)
	}
	if took := time.Since(began); took > madDelete {
		r.t.Errorf("delete --force took %v", took)
	}
}

// supervisorLog checks the supervisor's log.
func (r *madRun) supervisorLog() {
	r.t.Helper()
	path := filepath.Join(r.root, r.id, "supervisor.log")
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) && r.mode.logs == "" {
		return // nothing was created
	}
	if err != nil {
		r.t.Fatal(err)
	}
	if info.Size() > 256<<10 {
		r.t.Fatalf("the supervisor's log has %d bytes", info.Size())
	}
	text := readFile(r.t, path)
	if bad := unsafeText(text); bad != "" {
		r.t.Errorf("the supervisor's log has %s", bad)
	}
	if !strings.Contains(text, r.mode.logs) {
		r.t.Errorf("the supervisor's log does not say %q, so the guest did not do its worst: %.2000s", r.mode.logs, text)
	}
}

// unsafeText returns what in s must not reach a terminal; "" if nothing.
func unsafeText(s string) string {
	if !utf8.ValidString(s) {
		return "bytes that are not UTF-8"
	}
	for i, c := range s {
		if c != '\n' && c != '\t' && (unicode.IsControl(c) || unicode.Is(unicode.Cf, c) || c == '\u2028' || c == '\u2029') {
			return fmt.Sprintf("%U after %.100q", c, s[max(0, i-100):i])
		}
	}
	return ""
}

// memoryWatch samples the peak memory of husk's processes.
type memoryWatch struct {
	t    *testing.T
	done chan struct{}
	all  sync.WaitGroup

	mu   sync.Mutex
	pids map[int]bool
	peak int
	who  string

	forgotten bool
}

func watchMemory(t *testing.T) *memoryWatch {
	w := &memoryWatch{t: t, pids: map[int]bool{}, done: make(chan struct{})}
	w.all.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			w.look()
			select {
			case <-tick.C:
			case <-w.done:
				return
			}
		}
	})
	return w
}

// forget leaves the check to another watch.
func (w *memoryWatch) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peak, w.forgotten = 0, true
}

func (w *memoryWatch) add(pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pids[pid] = true
}

func (w *memoryWatch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for pid := range w.pids {
		kib, name, ok := peakMemory(pid)
		if !ok {
			delete(w.pids, pid)
			continue
		}
		if kib > w.peak {
			w.peak, w.who = kib, name
		}
		// At first a supervisor is a child of its cli.
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		for child := range strings.FieldsSeq(string(children)) {
			if n, err := strconv.Atoi(child); err == nil && isHusk(n) {
				w.pids[n] = true
			}
		}
	}
}

func isHusk(pid int) bool {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return filepath.Base(exe) == "husk"
}

func peakMemory(pid int) (kib int, name string, ok bool) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, "", false
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 64<<10))
	for lines.Scan() {
		switch key, value, _ := strings.Cut(lines.Text(), ":"); key {
		case "Name":
			name = strings.TrimSpace(value)
		case "VmHWM":
			kib, err = strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			return kib, name, err == nil && isHusk(pid)
		}
	}
	return 0, name, alive(pid)
}

func (w *memoryWatch) stop() {
	close(w.done)
	w.all.Wait()
	if w.peak == 0 && !w.forgotten {
		w.t.Error("no process was seen whose memory could be judged")
	}
	if w.peak > madMemoryKiB {
		w.t.Errorf("%s had %d KiB of memory", w.who, w.peak)
	}
	w.t.Logf("peak of memory: %s, %d KiB", w.who, w.peak)
}

// TestMadAgent tests the host with guests whose agent lies, floods, stalls, truncates and
// replays.
func TestMadAgent(t *testing.T) {
	needMadHusk(t)
	if n := countModes(); n < 40 {
		t.Errorf("%d modes of madness", n)
	}
	for _, mode := range madModes {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			runMad(t, mode)
		})
	}
}

// TestMadAgentNever tests guests that never answer a call: each verb ends by its own deadline.
// The guests run at the same time.
func TestMadAgentNever(t *testing.T) {
	needMadHusk(t)
	t.Parallel()
	var all sync.WaitGroup
	for _, mode := range madNever {
		all.Go(func() {
			t.Run(mode.name, func(t *testing.T) { runMad(t, mode) })
		})
	}
	all.Wait()
}

// TestMadAgentSilent tests guests that never answer before Create: boot_timeout ends them. The
// guests run at the same time.
func TestMadAgentSilent(t *testing.T) {
	needMadHusk(t)
	t.Parallel()
	var all sync.WaitGroup
	turns := make(chan struct{}, madAtOnce)
	for _, name := range madSilent {
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			mode := early(name, "")
			mode.silence = madSilence
			t.Run(name, func(t *testing.T) { runMad(t, mode) })
		})
	}
	all.Wait()
}

// TestMadTemplate: a template whose clones do not greet is discarded, and the guest that boots
// then is given up too.
func TestMadTemplate(t *testing.T) {
	needMadHusk(t)
	t.Parallel()
	e := madEnv(t)
	with := e.otherSettings(map[string]string{
		"vsock": `"off"`, "kernel_params": `"husk.mad=greeting:garbage"`, "boot_timeout": strconv.Quote(madBoot.String()),
	})
	began := time.Now()
	r := e.with(with, "create", "--bundle", e.bundle(), e.id()).is(1)
	if took := time.Since(began); took > 2*madBoot+madVerb { // a clone, a boot and a template
		t.Errorf("create took %v", took)
	}
	if bad := unsafeText(r.stderr + r.log); bad != "" {
		t.Error(bad)
	}
}

// withMadNotify gives the container a notification socket.
func withMadNotify(e *env) []specOption {
	path := e.path("manager")
	c := manager(e.t, path)
	go func() {
		for b := make([]byte, 8192); ; {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}()
	return []specOption{withBind(path, "/sock", "bind"), withEnv("NOTIFY_SOCKET=/sock")}
}

// processNetNS returns a network namespace that a process holds. A mounted one would be copied
// to the mount namespace of each container created meanwhile, and the leak check would take
// that for a leak of this test.
func (e *env) processNetNS() *netNS {
	e.t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &netNS{t: e.t, path: fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)}
}

// withMadNetwork gives the container an interface.
func withMadNetwork(e *env) []specOption {
	outer, inner := e.processNetNS(), e.processNetNS()
	wire(e.t, outer, inner, 1500)
	return []specOption{withNetNS(inner.path)}
}

// withMadNames gives the container an engine's resolver.
func withMadNames(e *env) []specOption {
	path := e.path("resolv")
	writeFile(e.t, path, "nameserver 127.0.0.11\n")
	return []specOption{withBind(path, "/etc/resolv.conf", "bind")}
}
