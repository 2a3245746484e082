package qemu

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/distro"
	"github.com/huskvm/husk/hypervisor"
)

func write(t *testing.T, dir, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

const cpuinfoText = "processor\t: 0\ncpu MHz\t\t: 800.000\nflags\t\t: fpu FLAG lm\nbogomips\t: 5192.28\n\n" +
	"processor\t: 1\nflags\t\t: fpu vmx\nbogomips\t: 1.00\n"

func TestProbeAccel(t *testing.T) {
	dir := t.TempDir()
	kvm := write(t, dir, "kvm", "", 0o600)
	plain := write(t, dir, "plain", cpuinfoText, 0o600) // "vmx" only on a processor that is not looked at
	svm := write(t, dir, "svm", strings.Replace(cpuinfoText, "FLAG", "svm", 1), 0o600)
	version := func(v int, err error) func(*os.File) (int, error) {
		return func(*os.File) (int, error) { return v, err }
	}
	missing := filepath.Join(dir, "missing")

	cases := map[string]struct {
		host    host
		want    hypervisor.Accel
		accel   hypervisor.Accel
		reason  string
		problem string
	}{
		"auto, all there":       {host{kvm: kvm, cpuinfo: svm, apiVersion: version(12, nil)}, "auto", "kvm", "has svm", ""},
		"unset is auto":         {host{kvm: kvm, cpuinfo: svm, apiVersion: version(12, nil)}, "", "kvm", "has svm", ""},
		"auto, no flag":         {host{kvm: kvm, cpuinfo: plain, apiVersion: version(12, nil)}, "auto", "tcg", "neither vmx nor svm", ""},
		"auto, no device":       {host{kvm: missing, cpuinfo: svm}, "auto", "tcg", "enable virtualization", ""},
		"auto, wrong api":       {host{kvm: kvm, cpuinfo: svm, apiVersion: version(11, nil)}, "auto", "tcg", "api version 11", ""},
		"auto, not kvm":         {host{kvm: kvm, cpuinfo: svm, apiVersion: version(0, unix.ENOTTY)}, "auto", "tcg", "inappropriate ioctl", ""},
		"auto, no cpuinfo":      {host{kvm: kvm, cpuinfo: missing, apiVersion: version(12, nil)}, "auto", "", "", "read processor flags"},
		"kvm without flag":      {host{kvm: kvm, cpuinfo: plain, apiVersion: version(12, nil)}, "kvm", "kvm", "configured", ""},
		"kvm without device":    {host{kvm: missing, cpuinfo: svm}, "kvm", "", "", "load kvm_intel or kvm_amd"},
		"kvm that is something": {host{kvm: kvm, cpuinfo: svm, apiVersion: version(7, nil)}, "kvm", "", "", "api version 7"},
		"tcg":                   {host{kvm: kvm, cpuinfo: svm, apiVersion: version(12, nil)}, "tcg", "tcg", "configured", ""},
		"nonsense":              {host{}, "xen", "", "", `"xen" is none of`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			accel, reason, err := c.host.probeAccel(c.want)
			if c.problem != "" {
				if err == nil || !strings.Contains(err.Error(), c.problem) {
					t.Fatalf("error = %v, want one with %q", err, c.problem)
				}
				return
			}
			if err != nil || accel != c.accel || !strings.Contains(reason, c.reason) {
				t.Errorf("= %q, %q, %v; want %q and a reason with %q", accel, reason, err, c.accel, c.reason)
			}
		})
	}
	if got := (host{cpuinfo: plain}).tscKHz(); got != 2596140 {
		t.Errorf("tscKHz = %d, want 2596140", got)
	}
	if got := (host{cpuinfo: missing}).tscKHz(); got != 0 {
		t.Errorf("tscKHz without cpuinfo = %d, want 0", got)
	}
}

// TestProbeThisHost: the real probe gives an answer, with KVM's real ioctl.
func TestProbeThisHost(t *testing.T) {
	accel, reason, err := ProbeAccel(hypervisor.Auto)
	if err != nil || reason == "" || accel != hypervisor.KVM && accel != hypervisor.TCG {
		t.Errorf("ProbeAccel = %q, %q, %v", accel, reason, err)
	}
	if khz := thisHost.tscKHz(); khz < 100_000 {
		t.Errorf("tscKHz = %d: /proc/cpuinfo has no usable bogomips", khz)
	}
	if ok, reason := ProbeVsock(); reason == "" {
		t.Errorf("ProbeVsock = %v without a reason", ok)
	}
}

func TestProbeVsock(t *testing.T) {
	dir := t.TempDir()
	if ok, reason := (host{vhostVsock: filepath.Join(dir, "missing")}).probeVsock(); ok || !strings.Contains(reason, "load module vhost_vsock") {
		t.Errorf("missing: %v, %q", ok, reason)
	}
	if ok, reason := (host{vhostVsock: write(t, dir, "vsock", "", 0o600)}).probeVsock(); !ok || !strings.Contains(reason, "opens") {
		t.Errorf("there: %v, %q", ok, reason)
	}
}

func TestReserveCID(t *testing.T) {
	dir := t.TempDir()
	dev := write(t, dir, "vsock", "", 0o600)
	var tried []uint32
	f, cid, err := reserveCID(dev, func(_ *os.File, cid uint32) error {
		tried = append(tried, cid)
		if len(tried) < 3 {
			return unix.EADDRINUSE
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if len(tried) != 3 || cid != tried[2] || cid < 3 || tried[0] == tried[1] {
		t.Errorf("cid %d after trying %v", cid, tried)
	}

	calls := 0
	_, _, err = reserveCID(dev, func(*os.File, uint32) error { calls++; return unix.EADDRINUSE })
	if !errors.Is(err, unix.EADDRINUSE) || calls != cidTries {
		t.Errorf("all taken: %v after %d tries", err, calls)
	}
	calls = 0
	_, _, err = reserveCID(dev, func(*os.File, uint32) error { calls++; return unix.EPERM })
	if !errors.Is(err, unix.EPERM) || calls != 1 {
		t.Errorf("refused: %v after %d tries", err, calls)
	}
	if _, _, err = reserveCID(filepath.Join(dir, "missing"), nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "vhost_vsock") {
		t.Errorf("missing device: %v", err)
	}
}

func TestFindBinary(t *testing.T) {
	empty, second := t.TempDir(), t.TempDir()
	want := write(t, second, binaryName, "", 0o755)
	notExec := write(t, t.TempDir(), binaryName, "", 0o644)

	if got, err := findBinary("", []string{empty, second}); err != nil || got != want {
		t.Errorf("search = %q, %v", got, err)
	}
	if got, err := findBinary(want, nil); err != nil || got != want {
		t.Errorf("configured = %q, %v", got, err)
	}
	for configured, problem := range map[string]string{
		"":          distro.Install(distro.QEMU),
		"qemu":      "is not absolute",
		"/nowhere":  "the configured one",
		empty:       "is a directory",
		notExec:     "is not executable",
		want + "/x": "not a directory",
	} {
		if got, err := findBinary(configured, []string{empty}); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("findBinary(%q) = %q, %v, want an error with %q", configured, got, err, problem)
		}
	}
}

func TestVersionCheck(t *testing.T) {
	for v, good := range map[version]bool{{6, 2, 0}: false, {7, 1, 9}: false, {7, 2, 22}: true, {10, 0, 2}: true} {
		err := v.check()
		if (err == nil) != good {
			t.Errorf("%s: %v", v, err)
		}
		if err != nil && !strings.Contains(err.Error(), distro.Install(distro.QEMU)) {
			t.Errorf("%s: %v does not say what to install", v, err)
		}
	}
}
