package check

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/bootimage"
	"github.com/huskvm/husk/host/distro"
	"github.com/huskvm/husk/host/install"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/qemu"
)

// want compares a check with the expected status and words of its detail and advice. An empty
// advice means that there must be none.
func want(t *testing.T, c Check, status Status, detail, advice string) {
	t.Helper()
	if c.Status != status || !strings.Contains(c.Detail, detail) || !strings.Contains(c.Advice, advice) ||
		(advice == "") != (c.Advice == "") {
		t.Errorf("%+v, want %s, %q, %q", c, status, detail, advice)
	}
}

func write(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRun: every check appears once, failures count, and nothing is made on the host.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	settings := write(t, "config.toml", "accel = \"tcg\"\nqemu = \"/no/such/qemu\"\ncache = \""+dir+"/a/cache\"\n", 0o600)
	r := Run(t.Context(), Options{ConfigPath: settings, StateRoot: dir + "/b/state"})
	var names []string
	for _, c := range r.Checks {
		names = append(names, c.Name)
		if c.Detail == "" {
			t.Errorf("%s has no detail", c.Name)
		}
		if (c.Status == OK) != (c.Advice == "") {
			t.Errorf("%+v: advice is for what is not ok", c)
		}
	}
	if want := []string{
		"root", "settings", "accel", "qemu", "kernel", "agent", "vhost-vsock", "cgroup", "tun", "host-kernel",
		"virtiofsd", "cache", "state", "engines",
	}; !slices.Equal(names, want) {
		t.Errorf("checks %v, want %v", names, want)
	}
	if r.OK || r.failed() == 0 || r.QEMU != "" || r.Accel != hypervisor.TCG {
		t.Errorf("without qemu: %+v", r)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("a check made %v, %v", entries, err)
	}

	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(b), `{"ok":false,"accel":"tcg","`) ||
		!strings.Contains(string(b), `{"name":"settings","status":"ok","detail":"`+settings+`"}`) {
		t.Errorf("JSON is %s", b)
	}
}

func TestBadSettings(t *testing.T) {
	settings := write(t, "config.toml", "acel = \"kvm\"\n", 0o600)
	got, c := loadSettings(settings)
	want(t, c, Fail, `unknown key "acel"`, "correct the file")
	if got.Cache != "/var/cache/husk" || got.Accel != "auto" {
		t.Errorf("the other checks go on with %+v, want the defaults", got)
	}
	if r := Run(t.Context(), Options{ConfigPath: settings, StateRoot: t.TempDir()}); r.OK || len(r.Checks) != 14 {
		t.Errorf("with bad settings: %+v", r)
	}
}

func TestPrint(t *testing.T) {
	r := &Report{Accel: hypervisor.TCG, Checks: []Check{
		{Name: "root", Status: OK, Detail: "running as root"},
		{Name: "vhost-vsock", Status: Warn, Detail: "two\nlines\tand a tab", Advice: "do this"},
	}}
	var b strings.Builder
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	if want := "ok    root         running as root\n" +
		"warn  vhost-vsock  two lines and a tab\n" +
		"                   -> do this\n" +
		"\nhusk can run containers here, with tcg.\n"; b.String() != want {
		t.Errorf("printed\n%s, want\n%s", b.String(), want)
	}
	r.Checks = append(r.Checks, Check{Name: "tun", Status: Fail, Detail: "gone", Advice: "find it"})
	for _, end := range []string{"here: 1 check failed.\n", "here: 2 checks failed.\n"} {
		b.Reset()
		if err := r.Print(&b); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(b.String(), "husk cannot run containers "+end) {
			t.Errorf("printed %s, want its end %q", b.String(), end)
		}
		r.Checks = append(r.Checks, Check{Name: "qemu", Status: Fail, Detail: "gone", Advice: "install it"})
	}
	if err := r.Print(brokenPipe{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("print to a closed pipe: %v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestAccel(t *testing.T) {
	got, c := accel(hypervisor.TCG)
	want(t, c, OK, "tcg: configured", "")
	if got != hypervisor.TCG {
		t.Errorf("tcg became %q", got)
	}
	got, c = accel(hypervisor.Auto)
	switch got {
	case hypervisor.KVM:
		want(t, c, OK, "kvm: ", "")
	case hypervisor.TCG:
		want(t, c, Warn, "tcg: ", "enable virtualization")
	default:
		t.Errorf("auto became %q", got)
	}
	got, c = accel("hvf")
	want(t, c, Fail, `"hvf"`, "auto")
	if got != "" {
		t.Errorf("a wrong accel became %q", got)
	}
}

func TestQEMU(t *testing.T) {
	_, c := qemuBinary(t.Context(), "/no/such")
	want(t, c, Fail, "/no/such", "correct qemu in the settings file")
	for _, tc := range []struct {
		script         string
		status         Status
		detail, advice string
	}{
		{"echo 'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)'; echo Copyright", OK, "version 7.2.22, ", ""},
		{"echo QEMU emulator version 10.0.2", OK, "version 10.0.2, ", ""},
		{"echo QEMU emulator version 6.2.0", Fail, "is version 6.2.0, 7.2 or later", distro.Install(distro.QEMU)},
		{"echo hello; echo there", Fail, "does not say its version: hello", distro.Install(distro.QEMU)},
		{"echo no such library >&2; exit 127", Fail, "exit status 127: no such library", distro.Install(distro.QEMU)},
	} {
		t.Run(tc.script, func(t *testing.T) {
			path := write(t, "qemu", "#!/bin/sh\n"+tc.script+"\n", 0o755)
			found, c := qemuBinary(t.Context(), path)
			want(t, c, tc.status, tc.detail, tc.advice)
			if found != path {
				t.Errorf("found %q, want %q", found, path)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, c = qemuBinary(ctx, write(t, "qemu", "#!/bin/sh\nexec sleep 300\n", 0o755))
	want(t, c, Fail, "signal: killed", distro.Install(distro.QEMU))
}

func TestKernel(t *testing.T) {
	root := t.TempDir()
	_, c := kernel(bootimage.Settings{Root: root})
	want(t, c, Fail, "no kernel for guests: there is none in /boot", distro.Install(distro.Kernel))
	if err := os.Mkdir(filepath.Join(root, "boot"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "boot", "vmlinuz-6.1.0-9-amd64"), []byte("not a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, c = kernel(bootimage.Settings{Root: root})
	want(t, c, Fail, "vmlinuz-6.1.0-9-amd64: ", distro.Install(distro.Kernel))
	_, c = kernel(bootimage.Settings{Kernel: "/no/such/vmlinuz"})
	want(t, c, Fail, "/no/such/vmlinuz", "correct kernel")
}

func TestChannel(t *testing.T) {
	want(t, channel("off"), OK, "virtio-serial", "")
	if _, err := os.Stat("/dev/vhost-vsock"); err != nil {
		want(t, channel("auto"), OK, "virtio-serial is used: ", "")
		want(t, channel("on"), Fail, "/dev/vhost-vsock", "modprobe vhost_vsock")
	} else if os.Geteuid() == 0 {
		want(t, channel("auto"), OK, "/dev/vhost-vsock opens", "")
	}
}

func TestVirtiofsd(t *testing.T) {
	want(t, virtiofsd([]string{"/no/such", t.TempDir()}), OK, "not installed", "")
	path := write(t, "virtiofsd", "", 0o755)
	want(t, virtiofsd([]string{"/no/such", path}), OK, path, "")
}

func TestEngines(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"one", "two", "three"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	daemon := func(content string) string { return write(t, "daemon.json", content, 0o600) }
	engine := func(program, file string) *install.Engine {
		e := *install.Find("docker")
		e.Name, e.Program, e.DefaultFile = program, program, file
		return &e
	}
	want(t, engines([]*install.Engine{
		engine("one", daemon(`{"runtimes": {"husk": {"path": "/husk"}}}`)),
		engine("two", daemon(`{}`)),
		engine("three", daemon(`not json`)),
		engine("absent", daemon(`{}`)),
	}, []string{dir}), OK, "one knows husk; two does not know husk yet (husk install two); three: unknown (", "")
	want(t, engines(nil, []string{dir}), OK, "no engine is installed", "")
}

// TestTrial: a trial fails with what its container reports, and leaves no files.
func TestTrial(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	for _, c := range []struct {
		name, script   string
		status         Status
		detail, advice string
	}{
		{"works", "echo 6.1.0-9-amd64", OK, `on Linux "6.1.0-9-amd64" in `, ""},
		{"fails", "echo no guest >&2; exit 1", Fail, "exit status 1: no guest", "troubleshooting"},
		{
			// It records the arguments of the second call, which deletes the container.
			"is ended", `test "$3" = run && exit 1; echo "$1 $3 $4" >&2; exit 2`, Fail,
			"no container runs: exit status 1: delete the container: exit status 2: --root delete --force", "troubleshooting",
		},
		{"is silent", "exit 0", Fail, "printed nothing", "troubleshooting"},
		{"has a bundle", `shift 4; grep -q '"args":\["/husk","inside"\]' "$1/config.json" && test -d "$1/rootfs" && echo 1`, OK, `"1"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			self := write(t, "husk", "#!/bin/sh\n"+c.script+"\n", 0o755)
			trial := Trial{
				Spec: &specs.Spec{Process: &specs.Process{Terminal: true}, Root: &specs.Root{}},
				Self: self, Inside: []string{"inside"},
			}
			want(t, trial.Run(t.Context()), c.status, c.detail, c.advice)
		})
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestMinimumInReadme: the README names the kernel version that the code asks for.
func TestMinimumInReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"Linux " + minHostKernel + " or later", "QEMU " + qemu.MinVersion() + " or later"} {
		if !strings.Contains(string(text), w) {
			t.Errorf("README.md does not say %q", w)
		}
	}
}
