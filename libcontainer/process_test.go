package libcontainer

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

func TestUser(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "id -u; id -g; id -G; umask; echo $HOME; touch /tmp/new; stat -c %u:%g:%a /tmp/new; echo through >/dev/stdout")
	if err := os.Chmod(filepath.Join(rootfs, "tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 77}, Umask: ptr(uint32(0o027))}
	equal(t, "process", mustRun(t, spec), "1000\n1001\n1001 5 77\n0027\n/home/user\n1000:1001:640\nthrough\n")

	spec = newSpec(rootfs, "id -u; id -G; umask; echo $HOME")
	spec.Process.User = specs.User{UID: 4242, GID: 1}
	equal(t, "unknown user", mustRun(t, spec), "4242\n1\n0022\n/\n")
}

func TestHostilePasswd(t *testing.T) {
	rootfs := newRootfs(t)
	passwd := filepath.Join(rootfs, "etc/passwd")
	if err := os.Remove(passwd); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(passwd, 0o644); err != nil {
		t.Fatal(err)
	}
	equal(t, "HOME", mustRun(t, newSpec(rootfs, "echo $HOME")), "/\n")
}

func TestEnvironment(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "")
	spec.Process.Args = []string{"env"}
	spec.Process.Env = []string{"A=1", "PATH=/bin", "HOME=", "A=2", "EMPTY="}
	equal(t, "environment", mustRun(t, spec), "A=2\nPATH=/bin\nHOME=/root\nEMPTY=\n")
	for env, want := range map[string]string{
		"NOVALUE": `invalid environment variable: missing '=': "NOVALUE"`,
		"=x":      "invalid environment variable: name cannot be empty",
		"A=\x00":  `invalid environment variable "A": contains nul byte`,
	} {
		if _, err := environment([]string{env}); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", env, err, want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	rootfs := newRootfs(t)
	const show = "grep Cap /proc/self/status"
	few := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"} // bits 0, 5, 10
	one := []string{"CAP_KILL"}
	sets := func(bounding, effective, permitted, inheritable, ambient []string) *specs.LinuxCapabilities {
		return &specs.LinuxCapabilities{
			Bounding: bounding, Effective: effective, Permitted: permitted, Inheritable: inheritable, Ambient: ambient,
		}
	}
	status := func(inh, prm, eff, bnd, amb string) string {
		zeros := "0000000000000"
		return "CapInh:\t" + zeros + inh + "\nCapPrm:\t" + zeros + prm + "\nCapEff:\t" + zeros + eff +
			"\nCapBnd:\t" + zeros + bnd + "\nCapAmb:\t" + zeros + amb + "\n"
	}
	for _, tt := range []struct {
		name string
		uid  uint32
		caps *specs.LinuxCapabilities
		want string
	}{
		// At execve root gets all capabilities of the bounding and inheritable sets.
		{"root", 0, sets(few, few, few, nil, nil), status("000", "421", "421", "421", "000")},
		{"none", 0, nil, status("000", "000", "000", "000", "000")},
		{"user", 1000, sets(few, few, few, nil, nil), status("000", "000", "000", "421", "000")},
		{"inheritable", 1000, sets(few, few, few, few, nil), status("421", "000", "000", "421", "000")},
		{"ambient", 1000, sets(few, few, few, few, one), status("421", "020", "020", "421", "020")},
		{"bounding only", 0, sets(one, nil, nil, nil, nil), status("000", "020", "020", "020", "000")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := newSpec(rootfs, show)
			spec.Process.User.UID = tt.uid
			spec.Process.Capabilities = tt.caps
			equal(t, "status", mustRun(t, spec), tt.want)
		})
	}
}

func TestExecHasItsOwnSettings(t *testing.T) {
	rootfs := newRootfs(t)
	c := start(t, &Config{Spec: newSpec(rootfs, "exec sleep 1000")})
	p := newProcess("grep -E '^(CapEff|NoNewPrivs|Uid)' /proc/self/status; pwd; set -- $(cat /proc/self/stat); echo ${19}")
	p.User.UID = 1000
	p.Cwd = "/tmp"
	p.NoNewPrivileges = true
	p.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Nice: 7}
	got, err := c.Exec(p, false)
	if err != nil {
		t.Fatal(err)
	}
	defer got.CloseIO()
	equal(t, "exec's output", collect(t, got).out,
		"Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n/tmp\n7\n")
}

func TestNoNewPrivileges(t *testing.T) {
	rootfs := newRootfs(t)
	for _, on := range []bool{false, true} {
		spec := newSpec(rootfs, "grep NoNewPrivs /proc/self/status")
		spec.Process.NoNewPrivileges = on
		want := "NoNewPrivs:\t0\n"
		if on {
			want = "NoNewPrivs:\t1\n"
		}
		equal(t, "status", mustRun(t, spec), want)
	}
}

func TestRlimits(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "cat /proc/self/limits")
	var core, nofile unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		t.Fatal(err)
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &nofile); err != nil {
		t.Fatal(err)
	}
	if core.Max < 4096 || nofile.Max < 100 {
		t.Fatalf("limits of this process are too low: core %d, files %d", core.Max, nofile.Max)
	}
	spec.Process.Rlimits = []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: 50, Hard: 100},
		{Type: "RLIMIT_CORE", Soft: 0, Hard: 4096},
		{Type: "RLIMIT_AS", Soft: 64 << 20, Hard: 64 << 20}, // less than the init stage itself has mapped
		{Type: "RLIMIT_FSIZE", Soft: 1 << 20, Hard: 2 << 20},
	}
	check := func(text string) {
		t.Helper()
		limits := make(map[string]string)
		for line := range strings.Lines(text) {
			if len(line) > 67 {
				limits[strings.TrimSpace(line[:26])] = strings.Join(strings.Fields(line[26:67]), " ")
			}
		}
		for name, want := range map[string]string{
			"Max open files": "50 100", "Max core file size": "0 4096",
			"Max address space": "67108864 67108864", "Max file size": "1048576 2097152",
		} {
			equal(t, name, limits[name], want)
		}
	}
	check(mustRun(t, spec))

	c := start(t, &Config{Spec: newSpec(rootfs, "exec sleep 1000")})
	p, err := c.Exec(spec.Process, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.CloseIO()
	check(collect(t, p).out)
}

func TestOOMScoreAdj(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "cat /proc/self/oom_score_adj")
	spec.Process.OOMScoreAdj = ptr(321)
	equal(t, "oom_score_adj", mustRun(t, spec), "321\n")
}

func TestScheduling(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "set -- $(cat /proc/self/stat); echo ${19}; busybox ionice; uname -m")
	if err := os.Symlink("busybox", filepath.Join(rootfs, "bin/uname")); err != nil {
		t.Fatal(err)
	}
	spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
	spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	equal(t, "scheduling", mustRun(t, spec), "5\nbest-effort: prio 6\ni686\n")
}

func TestMemoryPolicy(t *testing.T) {
	spec := newSpec(newRootfs(t), "head -n 1 /proc/self/numa_maps | cut -d ' ' -f 2; exec sleep 1000")
	spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{
		Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes},
	}
	c := start(t, &Config{ID: "policy", Spec: spec})
	equal(t, "policy of another process", exec(t, c, "head -n 1 /proc/self/numa_maps | cut -d ' ' -f 2").out, "bind=static:0\n")
	spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "1000-1023"}
	_, err := Create(&Config{ID: "x", Spec: spec})
	if err == nil || !strings.Contains(err.Error(), "set memory policy: invalid argument") {
		t.Errorf("nodes that are not there: %v", err)
	}
}

func TestNewMemoryPolicy(t *testing.T) {
	p, err := newMemoryPolicy(&specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "0-2, 7"})
	if err != nil || p.Mode != unix.MPOL_INTERLEAVE || p.Nodes.Count() != 4 || !p.Nodes.IsSet(7) {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []specs.LinuxMemoryPolicy{
		{},
		{Mode: "X"},
		{Mode: specs.MpolBind, Nodes: "x"},
		{Mode: specs.MpolBind, Nodes: "0-1024"},
		{Mode: specs.MpolBind, Nodes: "1-"},
		{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{"X"}},
	} {
		if p, err := newMemoryPolicy(&bad); err == nil {
			t.Errorf("%+v: %+v", bad, p)
		}
	}
}

func TestCwd(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "pwd")
	spec.Process.Cwd = "/work/deep"
	equal(t, "made working directory", mustRun(t, spec), "/work/deep\n")

	// A directory that only its owner may enter, and root without the capability to bypass
	// that.
	private := filepath.Join(rootfs, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(private, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	spec.Process.Cwd = "/private"
	spec.Process.User.UID = 1000
	equal(t, "user's directory", mustRun(t, spec), "/private\n")
}

func TestTerminal(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "tty; echo console >/dev/console; stty size; stty -echo; echo ready; read x; stty size; exec sleep 1000")
	if err := os.Symlink("busybox", filepath.Join(rootfs, "bin/tty")); err != nil {
		t.Fatal(err)
	}
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &specs.Box{Height: 11, Width: 22}
	c := start(t, &Config{Spec: spec})
	p := c.Init()
	defer p.CloseIO()
	lines := bufio.NewReader(p.Console)
	next := func() string {
		t.Helper()
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimRight(line, "\r\n")
	}
	equal(t, "tty", next(), "/dev/pts/0")
	equal(t, "line", next(), "console")
	equal(t, "size", next(), "11 22")
	equal(t, "line", next(), "ready")
	if err := p.Resize(33, 44); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Console.WriteString("x\n"); err != nil {
		t.Fatal(err)
	}
	equal(t, "new size", next(), "33 44")

	// Only with a controlling terminal does ^C become a SIGINT.
	e := newProcess("tty; trap 'echo interrupted; exit 5' INT; stty -echo; echo ready; while :; do sleep 1; done")
	e.Terminal = true
	ep, err := c.Exec(e, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ep.CloseIO()
	lines = bufio.NewReader(ep.Console)
	equal(t, "exec's tty", next(), "/dev/pts/1")
	equal(t, "line", next(), "ready")
	if _, err := ep.Console.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	equal(t, "line", next(), "interrupted")
	equal(t, "exit code", wait(t, ep).Code, 5)
}

func TestTerminalOfUser(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "stat -L -c %u /proc/self/fd/0; echo x >/dev/tty")
	spec.Process.Terminal = true
	spec.Process.User.UID = 1000
	o := run(t, spec)
	equal(t, "output", o, output{"1000\r\nx\r\n", "", 0})
}

func TestTerminalNeedsDevpts(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "true")
	spec.Process.Terminal = true
	// A ptmx file of the image must not be used as the pty multiplexer.
	spec.Mounts = spec.Mounts[:1]
	if err := os.Mkdir(filepath.Join(rootfs, "dev/pts"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(rootfs, "dev/pts/ptmx"), "")
	_, err := Create(&Config{ID: "x", Spec: spec})
	want := "error during container init: open terminal: no devpts is mounted on /dev/pts"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestExecCPUAffinity(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "exec sleep 1000")
	spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "1023"} // for exec'd processes only
	c := start(t, &Config{Spec: spec})
	p := newProcess("grep Cpus_allowed_list /proc/self/status")
	p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "1023", Final: "0,1022-1023"}
	on, err := c.Exec(p, false)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "status", collect(t, on).out, "\t0\n")
	p.ExecCPUAffinity = &specs.CPUAffinity{Final: "1023"}
	if _, err := c.Exec(p, false); err == nil || !strings.Contains(err.Error(), "set CPU affinity") {
		t.Errorf("a CPU that is not there: %v", err)
	}
}
