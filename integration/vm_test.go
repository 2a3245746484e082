//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// otherSettings writes the suite's settings with lines replaced, and returns the file.
func (e *env) otherSettings(values map[string]string) string {
	e.t.Helper()
	var b strings.Builder
	for line := range strings.Lines(readFile(e.t, settings)) {
		key, _, _ := strings.Cut(line, " = ")
		if _, replaced := values[key]; !replaced {
			b.WriteString(line)
		}
	}
	for key, value := range values {
		b.WriteString(key + " = " + value + "\n")
	}
	path := e.path("settings")
	writeFile(e.t, path, b.String())
	return path
}

// with calls husk with another settings file.
func (e *env) with(settings string, args ...string) *result {
	e.t.Helper()
	// Global flags come before the verb, and the last --config counts.
	return e.do(append([]string{"--config", settings}, args...)...)
}

func TestGuestHasItsOwnKernel(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	r := e.ok("run", "--bundle", e.bundle(withScript("uname -r; cat /proc/sys/kernel/random/boot_id")), e.id())
	lines := strings.Fields(r)
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		t.Fatal(err)
	}
	bootID := strings.TrimSpace(readFile(t, "/proc/sys/kernel/random/boot_id"))
	if len(lines) != 2 || lines[1] == bootID {
		t.Errorf("the container's kernel is the host's: %q", r)
	}
	if want := os.Getenv("HUSK_KERNEL_RELEASE"); want != "" && lines[0] != want {
		t.Errorf("guest kernel %s, want %s", lines[0], want)
	}
}

// TestAccelInState: the state says which acceleration is used. There is no silent fall-back.
func TestAccelInState(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withArgs("true")))
	accel := e.state(c.id).Annotations["org.huskvm.accel"]
	want := os.Getenv("HUSK_EXPECT_ACCEL")
	if want == "" {
		want = "tcg"
		if info := readFile(t, "/proc/cpuinfo"); strings.Contains(info, " vmx") || strings.Contains(info, " svm") {
			want = "kvm"
		}
	}
	if accel != want {
		t.Errorf("accel in use: %q, want %q", accel, want)
	}
	c.stop()
}

// TestMoreVCPUsThanTheHost: more vCPUs than the host has CPUs would wait for each other, most
// of all while booting.
func TestMoreVCPUsThanTheHost(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	r := e.do("run", "--bundle", e.bundle(withScript("grep -c ^processor /proc/cpuinfo"), func(s *specs.Spec) {
		s.Annotations = map[string]string{"org.huskvm.vcpus": "250"}
	}), e.id()).is(0)
	host := runtime.NumCPU()
	if got := strings.TrimSpace(r.stdout); got != strconv.Itoa(host) {
		t.Errorf("the guest has %s CPUs, the host %d", got, host)
	}
	if want := fmt.Sprintf("the host has %d CPUs", host); !strings.Contains(r.log, want) {
		t.Errorf("the log does not say %q: %s", want, r.log)
	}
}

func TestSizeByAnnotationAndLimit(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	out := e.ok("run", "--bundle", e.bundle(withScript("grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo"), func(s *specs.Spec) {
		s.Annotations = map[string]string{"org.huskvm.vcpus": "2", "org.huskvm.memory_mib": "384"}
	}), e.id())
	var cpus, mib int
	if _, err := fmt.Sscan(out, &cpus, &mib); err != nil || cpus != min(2, runtime.NumCPU()) || mib < 256 || mib > 384 {
		t.Errorf("size of the guest: %q", out)
	}
	for key, value := range map[string]string{
		"org.huskvm.vcpus": "0", "org.huskvm.memory_mib": "lots", "org.huskvm.accel": "fast", "org.huskvm.nics": "-1",
	} {
		r := e.do("create", "--bundle", e.bundle(func(s *specs.Spec) {
			s.Annotations = map[string]string{key: value}
		}), e.id()).is(1)
		if !strings.Contains(r.stderr, key) {
			t.Errorf("%s=%s: %q does not name the annotation", key, value, r.stderr)
		}
	}
}

func TestCheck(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	text := e.ok("check")
	for _, w := range []string{"kvm", "kernel", "qemu", "vsock", "cgroup"} {
		if !strings.Contains(strings.ToLower(text), w) {
			t.Errorf("check says nothing of %s:\n%s", w, text)
		}
	}
	if out := e.ok("check", "--json"); !json.Valid([]byte(out)) {
		t.Errorf("check --json: %q", out)
	}
	// A container on trial prints the release of its kernel. TestGuestHasItsOwnKernel tests
	// that it is the guest's, because host and guest may have the same release.
	if trial := e.ok("check", "--run"); !strings.Contains(trial, "a container ran on Linux") {
		t.Errorf("check --run:\n%s", trial)
	}
	// Without a kernel check says what to do.
	r := e.with(e.otherSettings(map[string]string{"kernel": `"/no/such/kernel"`}), "check")
	if r.code == 0 || !strings.Contains(r.stdout+r.stderr, "/no/such/kernel") {
		t.Errorf("check with a missing kernel: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// TestBadSettings: bad settings give one clear line that names what is wrong.
func TestBadSettings(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle()
	notKernel := e.path("kernel")
	writeFile(t, notKernel, "this is no kernel")
	for _, c := range []struct {
		name   string
		values map[string]string
		text   string
	}{
		{"missing kernel", map[string]string{"kernel": `"/no/such/kernel"`}, "/no/such/kernel"},
		{"not a kernel", map[string]string{"kernel": `"` + notKernel + `"`}, notKernel},
		{"missing modules", map[string]string{"modules": `"/no/such/modules"`}, "/no/such/modules"},
		{"missing qemu", map[string]string{"qemu": `"/no/such/qemu"`}, "/no/such/qemu"},
		{"not qemu", map[string]string{"qemu": `"/bin/true"`}, "/bin/true"},
		{"unknown key", map[string]string{"kernal": `"x"`}, "kernal"},
		{"bad accel", map[string]string{"accel": `"warp"`}, "warp"},
		{"tiny memory", map[string]string{"memory_mib": "1"}, "memory_mib"},
	} {
		id := e.id()
		r := e.with(e.otherSettings(c.values), "create", "--bundle", bundle, id).is(1)
		if !strings.Contains(r.stderr, c.text) || strings.Count(strings.TrimSpace(r.stderr), "\n") != 0 {
			t.Errorf("%s: %q, want one line naming %q", c.name, r.stderr, c.text)
		}
		e.do("state", id).fails(1, missing)
	}
	r := e.with("/no/such/settings", "create", "--bundle", bundle, e.id()).is(1)
	if !strings.Contains(r.stderr, "/no/such/settings") {
		t.Errorf("missing settings file: %q", r.stderr)
	}
}

// TestGuestPanic: a guest that panics ends create at once, with the end of its console.
func TestGuestPanic(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	id := e.id()
	r := e.with(e.otherSettings(map[string]string{"kernel_params": `"rdinit=/no/such/init init=/no/such/init"`}),
		"create", "--bundle", e.bundle(), id).is(1)
	// One that had waited for the deadline would say so.
	if !strings.Contains(r.stderr, "panic") || strings.Contains(r.stderr, "boot_timeout") {
		t.Errorf("the error does not carry the console: %q", r.stderr)
	}
	e.do("state", id).fails(1, missing)
}

// TestBootTimeout: a guest that never answers is killed at the deadline.
func TestBootTimeout(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	id := e.id()
	r := e.with(e.otherSettings(map[string]string{"boot_timeout": `"1s"`, "templates": `"off"`}), "create", "--bundle", e.bundle(), id).is(1)
	if !strings.Contains(r.stderr, "1s") && !strings.Contains(r.stderr, "timeout") && !strings.Contains(r.stderr, "did not") {
		t.Errorf("stderr %q", r.stderr)
	}
	e.do("state", id).fails(1, missing)
}

// TestCacheRace: two creates at once with an empty cache both succeed.
func TestCacheRace(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	fresh := e.otherSettings(map[string]string{"cache": `"` + filepath.Join(e.dir, "cache") + `"`})
	var calls []*process
	for range 2 {
		calls = append(calls, e.start(call{}, "--config", fresh, "run", "--bundle", e.bundle(withScript("echo booted")), e.id()))
	}
	for _, p := range calls {
		if r := p.wait().is(0); r.stdout != "booted\n" || strings.Contains(r.stderr, "\r") {
			t.Errorf("stdout %q, stderr %q (a progress bar is for terminals)", r.stdout, r.stderr)
		}
	}
}

// TestClock: the guest's clock is the host's.
func TestClock(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	var guest int64
	out := e.ok("run", "--bundle", e.bundle(withArgs("date", "+%s")), e.id())
	if _, err := fmt.Sscan(out, &guest); err != nil {
		t.Fatal(err)
	}
	if off := time.Now().Unix() - guest; off < -5 || off > 30 {
		t.Errorf("the guest's clock is %d s off", off)
	}
}

// TestKVMIsUsed: in the KVM test bed KVM and vhost-vsock are really used, by what the processor
// tells inside the guest and by what the vmm has open outside.
func TestKVMIsUsed(t *testing.T) {
	if os.Getenv("HUSK_EXPECT_ACCEL") != "kvm" {
		t.Skip("for the KVM test bed (make test-kvm); elsewhere the guest is emulated")
	}
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	if r := c.exec("testprog", "vendor").is(0); r.stdout != "KVMKVMKVM\n" {
		t.Errorf("hypervisor by cpuid in the guest: %q", r.stdout)
	}
	if got := e.state(c.id).Annotations["org.huskvm.accel"]; got != "kvm" {
		t.Errorf("accel in state: %q", got)
	}
	vmms := e.vmms()
	if len(vmms) != 1 {
		t.Fatalf("vmm processes: %v", vmms)
	}
	held := map[string]bool{}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", vmms[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", vmms[0], fd.Name()))
		held[filepath.Base(target)] = true // the vmm has its own mount namespace, so paths are incomplete
	}
	for _, want := range []string{"anon_inode:kvm-vm", "vhost-vsock"} {
		if !held[want] {
			t.Errorf("the vmm does not hold %s: %v", want, held)
		}
	}
	peer := fmt.Sprintf("vsock %s 1024", match(t, describe(vmms[0]), `guest-cid=(\d+)`))
	sockets := socketsOf(t, c.pid)
	at := slices.IndexFunc(sockets, func(s socket) bool { return s.peer == peer })
	if at < 0 {
		t.Fatalf("the agent channel is no vsock connection: %v", sockets)
	}
	var cid, port uint32
	if _, err := fmt.Sscanf(sockets[at].own, "vsock %d %d", &cid, &port); err != nil || port > 1023 {
		t.Errorf("the agent channel comes from %s, %v, not from a reserved port", sockets[at].own, err)
	}
	c.stop()
}

// TestAccelIsWhatTheGuestSees: the guest's processor and the state agree, emulated or not.
func TestAccelIsWhatTheGuestSees(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	vendor := strings.TrimSpace(c.exec("testprog", "vendor").is(0).stdout)
	want := map[string]string{"kvm": "KVMKVMKVM", "tcg": "TCGTCGTCGTCG"}[e.state(c.id).Annotations["org.huskvm.accel"]]
	if vendor != want {
		t.Errorf("the guest's processor says %q, the state means %q", vendor, want)
	}
	c.stop()
}
