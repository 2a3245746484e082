//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestStartsFromTemplate: by default a container starts from a template and does not boot.
func TestStartsFromTemplate(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	if r := e.do("run", "--bundle", e.bundle(), e.id()).is(0); r.log != "" {
		t.Errorf("a first start says %s", r.log)
	}
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	vmms := e.vmms()
	if len(vmms) != 1 || !strings.Contains(describe(vmms[0]), "-incoming") {
		t.Errorf("the container's VM was not started from a template: %v", vmms)
	}
	c.stop()
}

// clones is the number of containers that start from one template at the same moment.
const clones = 20

// TestClonesAreNotTwins: containers from one memory template share nothing that a stranger
// could use: what they draw from every source of randomness differs, their clocks are right,
// and each has its own names.
func TestClonesAreNotTwins(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withArgs("testprog", "draws"))
	e.ok("run", "--bundle", bundle, e.id()) // it makes the template if there is none
	n := clones
	if os.Getenv("HUSK_EXPECT_ACCEL") == "kvm" {
		n = 2 // the emulated outer machine has one processor
	}
	var calls []*process
	for range n {
		calls = append(calls, e.start(call{}, "run", "--bundle", bundle, e.id()))
	}
	seen := map[string]bool{}
	for _, p := range calls {
		drawn := map[string]string{}
		for line := range strings.Lines(p.wait().is(0).stdout) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			drawn[name] = value
		}
		for _, name := range []string{"getrandom", "urandom", "at_random", "boot_id", "uuid", "stack"} {
			value := drawn[name]
			if len(value) < 10 || seen[name+value] {
				t.Errorf("%s: %q was drawn by another clone, or not at all", name, value)
			}
			seen[name+value] = true
		}
		nanos, err := time.ParseDuration(drawn["clock"] + "ns")
		if off := time.Since(time.Unix(0, int64(nanos))); err != nil || off < 0 || off > time.Minute {
			t.Errorf("a clone's clock says %q, %v ago: %v", drawn["clock"], off, err)
		}
	}
}

// templates lists the templates in a cache directory.
func templates(t *testing.T, cache string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(cache, "templates", "[0-9a-f]*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// cacheWithKernel makes a cache directory without templates.
func (e *env) cacheWithKernel() string {
	e.t.Helper()
	cache := e.mkdir("cache")
	// The kernel is unpacked already.
	unpacked, err := filepath.Abs(os.Getenv("HUSK_CACHE"))
	if err != nil {
		e.t.Fatal(err)
	}
	for _, pattern := range []string{"vmlinux*", "initramfs*", "index*"} {
		files, _ := filepath.Glob(filepath.Join(unpacked, pattern))
		for _, file := range files {
			_ = os.Link(file, filepath.Join(cache, filepath.Base(file))) // if this fails the file is made again
		}
	}
	return cache
}

// TestDamagedTemplate: whatever happens to a template, containers start, and a new template is
// made.
func TestDamagedTemplate(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	cache := e.cacheWithKernel()
	with := e.otherSettings(map[string]string{"cache": fmt.Sprintf("%q", cache)})
	bundle := e.bundle(withScript("echo whole"))
	run := func() *result {
		t.Helper()
		r := e.with(with, "run", "--bundle", bundle, e.id()).is(0)
		if r.stdout != "whole\n" {
			t.Errorf("stdout %q", r.stdout)
		}
		return r
	}
	run()
	made := templates(t, cache)
	if len(made) != 1 {
		t.Fatalf("templates: %v", made)
	}
	if r := run(); r.log != "" {
		t.Errorf("a start from a sound template says %q", r.log)
	}
	for _, damage := range []struct {
		name string
		do   func(dir string) error
	}{
		{"device state of other bytes", func(dir string) error {
			return flip(filepath.Join(dir, "devices"), 1000)
		}},
		{"RAM of other bytes", func(dir string) error { return flip(filepath.Join(dir, "ram"), 16<<20) }},
		{"description cut short", func(dir string) error { return os.Truncate(filepath.Join(dir, "template.json"), 100) }},
		// Only the guest itself can find this.
		{"RAM empty and described so", emptyRAM},
	} {
		t.Run(damage.name, func(t *testing.T) {
			dir := templates(t, cache)[0]
			if err := damage.do(dir); err != nil {
				t.Fatal(err)
			}
			if r := run(); !strings.Contains(r.log, "template") {
				t.Errorf("no warning in the log: %q", r.log)
			}
			run()
			if r := run(); r.log != "" || len(templates(t, cache)) != 1 {
				t.Errorf("templates %v, log %q", templates(t, cache), r.log)
			}
		})
	}
}

// TestTemplateScope: two tenants have different templates, containers of one tenant share
// theirs, and a container without a tenant, or one that asks for it, boots.
func TestTemplateScope(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	cache := e.cacheWithKernel()
	with := func(scope string) string {
		return e.otherSettings(map[string]string{"cache": fmt.Sprintf("%q", cache), "template_scope": fmt.Sprintf("%q", scope)})
	}
	byTenant, byContainer := with("annotation:example.org/tenant"), with("container")
	const wish = "org.huskvm.template_scope"
	for _, step := range []struct {
		what        string
		settings    string
		annotations map[string]string
		templates   int // total number afterwards
		boots       bool
	}{
		{"no tenant", byTenant, nil, 0, true},
		{"none shares", byContainer, map[string]string{"example.org/tenant": "a"}, 0, true},
		{"the first of a", byTenant, map[string]string{"example.org/tenant": "a"}, 1, false},
		{"another of a", byTenant, map[string]string{"example.org/tenant": "a"}, 1, false},
		{"one of a that wants to be alone", byTenant, map[string]string{"example.org/tenant": "a", wish: "container"}, 1, true},
		{"one of b", byTenant, map[string]string{"example.org/tenant": "b"}, 2, false},
		{"one of b that says it is of a", byTenant, map[string]string{"example.org/tenant": "b", wish: "tenant:a"}, 3, false},
	} {
		c := e.createWithSettings(step.settings, e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) { s.Annotations = step.annotations }))
		if n := len(templates(t, cache)); n != step.templates {
			t.Errorf("%s: %d templates, want %d", step.what, n, step.templates)
		}
		if vmms := e.vmms(); len(vmms) != 1 || strings.Contains(describe(vmms[0]), "-incoming") == step.boots {
			t.Errorf("%s: boots should be %v: %v", step.what, step.boots, vmms)
		}
		c.stop()
	}
	list := e.with(byTenant, "template", "list").is(0).stdout
	for _, want := range []string{" a\n", " b\n", " b/a\n"} {
		if !strings.Contains(list, want) {
			t.Errorf("template list has no %q:\n%s", want, list)
		}
	}
	if r := e.with(byTenant, "template", "create").is(1); !strings.Contains(r.stderr, "template_scope") {
		t.Errorf("template create without a tenant: %q", r.stderr)
	}
}

// TestKernelLayout: the addresses of a guest's kernel are the same in each boot, so a template
// reveals nothing that a boot would hide. If that changes, ADR 24 has to say who shares it.
func TestKernelLayout(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	boots := e.otherSettings(map[string]string{"templates": `"off"`})
	bundle := e.bundle(withScript("grep -wE '_text|init_task' /proc/kallsyms"), withCapabilities("CAP_SYSLOG"))
	clone := e.ok("run", "--bundle", bundle, e.id())
	if len(strings.Fields(clone)) != 6 || strings.HasPrefix(clone, "0000000000000000") {
		t.Fatalf("kallsyms says %q", clone)
	}
	if booted := e.with(boots, "run", "--bundle", bundle, e.id()).is(0).stdout; booted != clone {
		t.Errorf("a booted kernel lies at\n%sa clone's at\n%s", booted, clone)
	}
}

// createWithSettings is create with another settings file.
func (e *env) createWithSettings(settings, bundle string) *container {
	e.t.Helper()
	id, pidFile := e.id(), e.path("pid")
	p, exit := e.detach(pidFile, "--config", settings, "create", "--bundle", bundle, "--pid-file", pidFile, id)
	return &container{e: e, id: id, bundle: bundle, pid: readPID(e.t, pidFile), stdout: p.stdout, stderr: p.stderr, exit: exit}
}

// flip changes one byte of a file.
func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0xff
	_, err = f.WriteAt(b, at)
	return err
}

// emptyRAM makes a template whose RAM is zero and whose description matches it.
func emptyRAM(dir string) error {
	ram := filepath.Join(dir, "ram")
	info, err := os.Stat(ram)
	if err != nil {
		return err
	}
	if err := os.Truncate(ram, 0); err != nil {
		return err
	}
	if err := os.Truncate(ram, info.Size()); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(ram, &st); err != nil {
		return err
	}
	path := filepath.Join(dir, "template.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var d map[string]any
	if err := json.Unmarshal(text, &d); err != nil {
		return err
	}
	d["ram"] = map[string]any{
		"inode": st.Ino, "bytes": st.Size, "mtime": st.Mtim.Nano(), "ctime": st.Ctim.Nano(), "regular": true,
	}
	if text, err = json.Marshal(d); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// TestCPUsOfLimit: containers with different limits start from one template, and nproc is right
// from the first instruction.
func TestCPUsOfLimit(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.do("run", "--bundle", e.bundle(withArgs("nproc"), func(s *specs.Spec) {
		s.Linux.Resources.CPU = &specs.LinuxCPU{Cpus: "0"}
	}), e.id()).is(0)
	if r.stdout != "1\n" {
		t.Errorf("nproc with cpus \"0\": %q", r.stdout)
	}
	if !isVM {
		return
	}
	quota, period := int64(50000), uint64(100000)
	r = e.do("run", "--bundle", e.bundle(withArgs("nproc"), func(s *specs.Spec) {
		s.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}), e.id()).is(0)
	if r.stdout != "1\n" {
		t.Errorf("nproc with half a CPU: %q", r.stdout)
	}
}

// TestTimings: husk --timings prints every phase of a start.
func TestTimings(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}}
	})
	r := e.do("--timings", "run", "--bundle", bundle, e.id()).is(0)
	for _, phase := range []string{
		"process start", "read config.json", "settings, kernel, template", "start supervisor", "cgroup", "hooks",
		"host setup", "network: taps", "vmm spawn", "agent answers", "agent hello", "agent create", "init stage", "execve", "the container runs", "delete",
	} {
		if !strings.Contains(r.stderr, phase+"\n") {
			t.Errorf("no phase %q in\n%s", phase, r.stderr)
		}
	}
}
