//go:build integration

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func capMask(caps ...int) string {
	var mask uint64
	for _, c := range caps {
		mask |= 1 << c
	}
	return fmt.Sprintf("%016x", mask)
}

func TestProcessSettings(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	umask, oom := uint32(0o027), 345
	r := parseReport(t, e.ok("run", "--bundle", e.bundle(withArgs("testprog", "status", "an argument", ""), func(s *specs.Spec) {
		p := s.Process
		p.User = specs.User{UID: 1, GID: 77, AdditionalGids: []uint32{5, 1234}, Umask: &umask}
		p.Cwd = "/made/by/runtime"
		p.Env = []string{"PATH=/bin", "EMPTY=", "SPACED=a b  c", "LINE=a\nb", "UTF8=ü"}
		p.NoNewPrivileges = true
		p.OOMScoreAdj = &oom
		p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1000, Hard: 2000}, {Type: "RLIMIT_STACK", Soft: 4 << 20, Hard: 8 << 20}}
		p.Capabilities = &specs.LinuxCapabilities{
			Bounding:    []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETUID"},
			Permitted:   []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"},
			Effective:   []string{"CAP_CHOWN", "CAP_KILL"},
			Inheritable: []string{"CAP_NET_BIND_SERVICE", "CAP_KILL"},
			Ambient:     []string{"CAP_NET_BIND_SERVICE", "CAP_KILL"},
		}
		s.Hostname = "other-name"
	}), e.id()))

	if r.UID != 1 || r.GID != 77 {
		t.Errorf("uid %d, gid %d", r.UID, r.GID)
	}
	slices.Sort(r.Groups)
	if !slices.Equal(slices.DeleteFunc(r.Groups, func(g int) bool { return g == 77 }), []int{5, 1234}) {
		t.Errorf("groups %v", r.Groups)
	}
	if r.Cwd != "/made/by/runtime" {
		t.Errorf("cwd %s", r.Cwd)
	}
	if want := []string{"testprog", "status", "an argument", ""}; !slices.Equal(r.Args, want) {
		t.Errorf("args %q, want %q", r.Args, want)
	}
	for _, kv := range []string{"EMPTY=", "SPACED=a b  c", "LINE=a\nb", "UTF8=ü"} {
		if !slices.Contains(r.Env, kv) {
			t.Errorf("env lacks %q: %q", kv, r.Env)
		}
	}
	if r.Umask != 0o027 {
		t.Errorf("umask %o", r.Umask)
	}
	if r.Hostname != "other-name" {
		t.Errorf("hostname %s", r.Hostname)
	}
	if r.Status["NoNewPrivs"] != "1" {
		t.Errorf("no_new_privs %s", r.Status["NoNewPrivs"])
	}
	if r.OOMScore != "345" {
		t.Errorf("oom_score_adj %s", r.OOMScore)
	}
	if r.Rlimits["RLIMIT_CORE"] != [2]uint64{1000, 2000} || r.Rlimits["RLIMIT_STACK"] != [2]uint64{4 << 20, 8 << 20} {
		t.Errorf("rlimits %v", r.Rlimits)
	}
	if r.PID != 1 {
		t.Errorf("pid %d, want 1", r.PID)
	}
	// At execve a user other than root keeps only ambient capabilities.
	for field, want := range map[string]string{
		"CapBnd": capMask(unix.CAP_CHOWN, unix.CAP_KILL, unix.CAP_NET_BIND_SERVICE, unix.CAP_SETUID),
		"CapInh": capMask(unix.CAP_NET_BIND_SERVICE, unix.CAP_KILL),
		"CapAmb": capMask(unix.CAP_NET_BIND_SERVICE, unix.CAP_KILL),
		"CapPrm": capMask(unix.CAP_NET_BIND_SERVICE, unix.CAP_KILL),
		"CapEff": capMask(unix.CAP_NET_BIND_SERVICE, unix.CAP_KILL),
	} {
		if r.Status[field] != want {
			t.Errorf("%s %s, want %s", field, r.Status[field], want)
		}
	}
}

func TestCapabilitiesOfRoot(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	for name, caps := range map[string]*specs.LinuxCapabilities{
		"two":  {Bounding: []string{"CAP_CHOWN", "CAP_SYS_CHROOT"}, Permitted: []string{"CAP_CHOWN", "CAP_SYS_CHROOT"}, Effective: []string{"CAP_CHOWN", "CAP_SYS_CHROOT"}},
		"none": {},
		"nil":  nil,
	} {
		r := parseReport(t, e.ok("run", "--bundle", e.bundle(withArgs("testprog", "status"), func(s *specs.Spec) {
			s.Process.Capabilities = caps
		}), e.id()))
		want := capMask()
		if name == "two" {
			want = capMask(unix.CAP_CHOWN, unix.CAP_SYS_CHROOT)
		}
		for _, field := range []string{"CapBnd", "CapPrm", "CapEff"} {
			if caps == nil { // runc leaves the process with the runtime's; it must never have more than was asked for
				continue
			}
			if r.Status[field] != want {
				t.Errorf("%s: %s %s, want %s", name, field, r.Status[field], want)
			}
		}
		if r.Status["CapInh"] != capMask() || r.Status["CapAmb"] != capMask() {
			t.Errorf("%s: CapInh %s, CapAmb %s", name, r.Status["CapInh"], r.Status["CapAmb"])
		}
	}
}

// With no_new_privs off, root gets the capabilities of its bounding set.
func TestSysctlAndDomainname(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.ok("run", "--bundle", e.bundle(withScript(
		"cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/shmmni /proc/sys/kernel/domainname /proc/sys/kernel/hostname"),
		func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{
				"net.ipv4.ip_forward": "1", "net.ipv4.ping_group_range": "7 9", "kernel.shmmni": "1234",
			}
			if isVM { // runc 1.1.5 knows no domainname
				s.Domainname = "example.test"
			}
		}), e.id())
	domain := "(none)"
	if isVM {
		domain = "example.test"
	}
	if got, want := strings.Join(strings.Fields(r), " "), "1 7 9 1234 "+domain+" testbox"; got != want {
		t.Errorf("sysctls %q, want %q", got, want)
	}
	e.do("run", "--bundle", e.bundle(func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.nosuch": "1"} }), e.id()).is(1)
}

func TestWorkingDirectoryAndPATH(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withArgs("own"), func(s *specs.Spec) {
		s.Process.Env = []string{"PATH=/opt/tools:/bin"}
	})
	writeFile(t, bundle+"/rootfs/opt/tools/own", "#!/bin/sh\necho own $0 in $PWD\n")
	if err := unix.Chmod(bundle+"/rootfs/opt/tools/own", 0o755); err != nil {
		t.Fatal(err)
	}
	if out := e.ok("run", "--bundle", bundle, e.id()); out != "own /opt/tools/own in /\n" {
		t.Errorf("stdout %q", out)
	}
	// If the config has no HOME, it comes from the rootfs's passwd.
	r := e.ok("run", "--bundle", e.bundle(withScript("echo $HOME"), func(s *specs.Spec) {
		s.Process.User = specs.User{UID: 1, GID: 1}
		s.Process.Env = []string{"PATH=/bin"}
	}), e.id())
	if r != "/tmp\n" {
		t.Errorf("HOME %q", r)
	}
	// A user that the rootfs does not know works too.
	if out := e.ok("run", "--bundle", e.bundle(withArgs("id", "-u"), func(s *specs.Spec) {
		s.Process.User = specs.User{UID: 12345}
	}), e.id()); out != "12345\n" {
		t.Errorf("uid %q", out)
	}
}

// TestInitIsPIDOne: the container's first process is pid 1 and gets orphans.
func TestInitIsPIDOne(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	out := e.ok("run", "--bundle", e.bundle(withScript("echo $$; ls -d /proc/[0-9]* | wc -l; (sleep 0.1 &) ; sleep 0.3")), e.id())
	if !strings.HasPrefix(out, "1\n") {
		t.Errorf("stdout %q", out)
	}
	var pid, n int
	if _, err := fmt.Sscan(out, &pid, &n); err != nil || n > 4 {
		t.Errorf("%d processes visible (%v)", n, err)
	}
}
