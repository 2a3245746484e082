package libcontainer

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLifecycle(t *testing.T) {
	rootfs := newRootfs(t)
	c := create(t, &Config{Spec: newSpec(rootfs, "echo out; echo err >&2; cat; exit 7")})
	p := c.Init()
	if p.ended() {
		t.Fatal("the process has ended before start")
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err == nil || err.Error() != "cannot start an already running container" {
		t.Errorf("second start: %v", err)
	}
	if _, err := io.WriteString(p.Stdin, "in"); err != nil {
		t.Fatal(err)
	}
	o := collect(t, p)
	equal(t, "stdout", o.out, "out\nin")
	equal(t, "stderr", o.err, "err\n")
	equal(t, "exit code", o.code, 7)
	if err := c.Start(); err == nil || err.Error() != "cannot start a container that has stopped" {
		t.Errorf("start of a stopped one: %v", err)
	}
	if err := c.Kill(unix.SIGTERM, false); !errors.Is(err, ErrNotRunning) {
		t.Errorf("kill of a stopped one: %v", err)
	}
	if _, err := c.Exec(newProcess("true"), false); err == nil || err.Error() != "cannot exec in a stopped container" {
		t.Errorf("exec in a stopped one: %v", err)
	}
}

func TestExitCodes(t *testing.T) {
	rootfs := newRootfs(t)
	for script, code := range map[string]int{
		"exit 0":   0,
		"exit 255": 255,
		// PID 1 cannot kill itself with SIGKILL; its child can do so.
		`sh -c 'kill -9 $$'; exit $?`: 137,
		"no-such-command":             127,
	} {
		if got := run(t, newSpec(rootfs, script)).code; got != code {
			t.Errorf("%s: exit code %d, want %d", script, got, code)
		}
	}
	c := start(t, &Config{Spec: newSpec(rootfs, "exec sleep 1000")})
	if err := c.Kill(unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	equal(t, "exit code after SIGKILL", wait(t, c.Init()).Code, 137)
}

func TestNoPivot(t *testing.T) {
	rootfs := newRootfs(t)
	// The stage starts in the host's mount namespace, but /proc/1/mountinfo must show only the
	// container's mounts.
	const script = "hostname; ls /; cat /proc/self/mountinfo | grep -c ' / / '; ls /proc/self/root/"
	c := start(t, &Config{Spec: newSpec(rootfs, script), NoPivot: true})
	o := collect(t, c.Init())
	want := "bin\ndev\netc\nproc\nroot\nsys\ntmp\n"
	if o.code != 0 || strings.Count(o.out, want) != 2 || strings.Contains(o.out, "lib64") {
		t.Errorf("%+v", o)
	}
	c = start(t, &Config{Spec: newSpec(rootfs, "exec sleep 1000"), NoPivot: true})
	equal(t, "files seen by exec", exec(t, c, "ls /").out, want)
}

func TestKillCreated(t *testing.T) {
	rootfs := newRootfs(t)
	for sig, code := range map[unix.Signal]int{
		unix.SIGTERM: 143,
		unix.SIGQUIT: 131,
		unix.SIGUSR1: 138,
		unix.SIGKILL: 137,
	} {
		c := create(t, &Config{Spec: newSpec(rootfs, "true")})
		if err := c.Kill(sig, false); err != nil {
			t.Fatal(err)
		}
		o := collect(t, c.Init())
		equal(t, "exit code after "+sig.String(), o.code, code)
		equal(t, "stderr after "+sig.String(), o.err, "")
	}
}

// TestSignalAwaitsHandler: a signal sent right after execve waits for the process's handler.
func TestSignalAwaitsHandler(t *testing.T) {
	rootfs := newRootfs(t)
	c := start(t, &Config{Spec: newSpec(rootfs, "sleep 0.2; trap 'exit 7' TERM; sleep 10 & wait")})
	c.Init().AwaitHandler(t.Context(), unix.SIGTERM)
	if err := c.Kill(unix.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
	equal(t, "exit code of a process with a handler", wait(t, c.Init()).Code, 7)

	c = start(t, &Config{Spec: newSpec(rootfs, "exec sleep 1000")})
	c.Init().AwaitHandler(t.Context(), unix.SIGTERM) // this process never installs a handler, so the wait ends by its time limit
	if err := c.Kill(unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	wait(t, c.Init())
	c.Init().AwaitHandler(t.Context(), unix.SIGTERM)
}

// TestSignalsReset: signals that the caller ignores or blocks are not ignored or blocked in the
// process.
func TestSignalsReset(t *testing.T) {
	rootfs := newRootfs(t)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE, unix.SIGUSR1)
	defer signal.Reset(unix.SIGHUP, unix.SIGPIPE, unix.SIGUSR1)
	const want = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
	spec := newSpec(rootfs, "")
	// A shell would ignore some signals itself.
	spec.Process.Args = []string{"grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"}
	equal(t, "signals", mustRun(t, spec), want)

	c := start(t, &Config{Spec: newSpec(rootfs, "exec sleep 1000")})
	p, err := c.Exec(spec.Process, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.CloseIO()
	equal(t, "signals of exec", collect(t, p).out, want)
}

func TestDescriptorsClosed(t *testing.T) {
	rootfs := newRootfs(t)
	// A descriptor without close-on-exec, as an engine may leave one open.
	fd, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	spec := newSpec(rootfs, "true")
	spec.Process.Args = []string{"ls", "/proc/self/fd"}
	equal(t, "descriptors", mustRun(t, spec), "0\n1\n2\n3\n") // 3 is that of ls itself
}

func TestExec(t *testing.T) {
	rootfs := newRootfs(t)
	c := create(t, &Config{Spec: newSpec(rootfs, "touch /tmp/started; exec sleep 1000")})
	equal(t, "exec before start", exec(t, c, "exit 9").code, 9)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	const ns = "cd /proc/self/ns; for n in cgroup ipc mnt net pid uts; do readlink $n; done"
	inInit := exec(t, c, strings.ReplaceAll(ns, "self", "1")).out
	inExec := exec(t, c, ns).out
	if inInit == "" || inInit != inExec {
		t.Errorf("namespaces of init %q, of exec %q", inInit, inExec)
	}
	for n := range strings.FieldsSeq(inExec) {
		kind, _, _ := strings.Cut(n, ":")
		own, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil || own == n {
			t.Errorf("namespace %s is the caller's: %s (%v)", kind, own, err)
		}
	}
	o := exec(t, c, "hostname; pwd; echo $HOME; exit 3")
	equal(t, "exec's output", o, output{"box\n/\n/root\n", "", 3})
	equal(t, "signal's code", exec(t, c, "kill -9 $$").code, 137)
	equal(t, "descriptors", exec(t, c, "exec ls /proc/self/fd").out, "0\n1\n2\n3\n")

	p, err := c.Exec(newProcess("exec sleep 1000"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.CloseIO()
	if err := c.Kill(unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	equal(t, "exec's code when the container ends", wait(t, p).Code, 137)
}

// TestThreadsUnchanged: no thread that has joined a container's namespaces runs other
// goroutines later.
func TestThreadsUnchanged(t *testing.T) {
	rootfs := newRootfs(t)
	c := start(t, &Config{Spec: newSpec(rootfs, "exec sleep 1000")})
	for range 20 {
		equal(t, "exit code", exec(t, c, "true").code, 0)
	}
	foreign, err := os.Readlink(c.NetNS())
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && ns == foreign {
			t.Errorf("thread %s is in the container's network namespace", task.Name())
		}
	}
}

func TestSharedNamespaces(t *testing.T) {
	rootfs := newRootfs(t)
	first := start(t, &Config{Spec: newSpec(rootfs, "exec sleep 1000")})
	spec := newSpec(rootfs, "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts; readlink /proc/self/ns/pid; hostname")
	spec.Hostname = ""
	pid := procFile(first.Init().PID(), "ns/")
	for i := range spec.Linux.Namespaces {
		switch n := &spec.Linux.Namespaces[i]; n.Type {
		case "network":
			n.Path = pid + "net"
		case "ipc", "uts", "pid":
			n.Path = pid + string(n.Type)
		}
	}
	want := ""
	for _, n := range []string{"net", "ipc", "uts", "pid"} {
		link, err := os.Readlink(pid + n)
		if err != nil {
			t.Fatal(err)
		}
		want += link + "\n"
	}
	equal(t, "namespaces", mustRun(t, spec), want+"box\n")
}

func TestHostNetwork(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "readlink /proc/self/ns/net")
	spec.Linux.Namespaces = append(spec.Linux.Namespaces[:1], spec.Linux.Namespaces[2:]...)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "network namespace", mustRun(t, spec), own+"\n")
}

func TestTimeNamespace(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "exec sleep 1000")
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, nsOf("time"))
	spec.Linux.TimeOffsets = offsets("boottime", 1_000_000_000)
	c := start(t, &Config{Spec: spec})
	for _, who := range []string{"1", "self"} {
		o := exec(t, c, "cat /proc/uptime; readlink /proc/"+who+"/ns/time")
		if !strings.HasPrefix(o.out, "100") || len(o.out) < 10 {
			t.Errorf("uptime with an offset of 10^9 s: %q", o.out)
		}
		own, err := os.Readlink("/proc/self/ns/time")
		if err != nil || strings.Contains(o.out, own) {
			t.Errorf("time namespace of %s is the caller's %s: %q, %v", who, own, o.out, err)
		}
	}
	o := exec(t, c, "readlink /proc/1/ns/time; readlink /proc/self/ns/time")
	if first, second, _ := strings.Cut(strings.TrimSpace(o.out), "\n"); first != second {
		t.Errorf("exec is in %s, the container in %s", second, first)
	}
}

func TestCallerDies(t *testing.T) {
	rootfs := newRootfs(t)
	c := create(t, &Config{Spec: newSpec(rootfs, "true")})
	c.init.conn.close() // as the kernel does when the caller dies
	equal(t, "exit code of the waiting stage", wait(t, c.Init()).Code, 1)
}

// TestNoLeaks makes many containers, some of which fail.
func TestNoLeaks(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	broken := newSpec(rootfs, "true")
	broken.Process.Args = []string{"/no/such"}
	once := func() {
		c, err := Create(&Config{ID: "leak", Spec: newSpec(rootfs, "exit 3"), CgroupRoot: root, CgroupPath: name})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		equal(t, "exit code", wait(t, c.Init()).Code, 3)
		destroy(t, c)
		if _, err := Create(&Config{ID: "leak", Spec: broken, CgroupRoot: root, CgroupPath: name}); err == nil {
			t.Fatal("a container without a program was made")
		}
	}
	once()
	before := census(t, rootfs)
	for range 100 {
		once()
	}
	after := census(t, rootfs)
	for what, n := range before {
		// The numbers of goroutines and threads vary; a leak would add 100.
		if d := after[what] - n; d > 3 {
			t.Errorf("%s: %d before, %d after", what, n, after[what])
		}
	}
	for _, what := range []string{"descriptors", "mounts", "children"} {
		equal(t, what, after[what], before[what])
	}
	if _, err := os.Stat(root + name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cgroup is left: %v", err)
	}
}

// census counts what a leak would increase. Only mounts of rootfs count, because other programs
// mount and unmount too.
func census(t *testing.T, rootfs string) map[string]int {
	t.Helper()
	runtime.GC()
	list := func(dir string) int {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	children := 0
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err == nil {
			children += len(strings.Fields(string(b)))
		}
	}
	return map[string]int{
		"descriptors": list("/proc/self/fd"),
		"mounts":      strings.Count(read(t, "/proc/self/mountinfo"), rootfs),
		"children":    children,
		"goroutines":  runtime.NumGoroutine(),
		"threads":     len(tasks),
	}
}

func BenchmarkCreate(b *testing.B) {
	rootfs := newRootfs(b)
	for b.Loop() {
		c, err := Create(&Config{ID: "bench", Spec: newSpec(rootfs, "true")})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		destroy(b, c)
		b.StartTimer()
	}
}

func BenchmarkExec(b *testing.B) {
	c := start(b, &Config{Spec: newSpec(newRootfs(b), "exec sleep 1000")})
	for b.Loop() {
		p, err := c.Exec(newProcess("true"), false)
		if err != nil {
			b.Fatal(err)
		}
		wait(b, p)
		p.CloseIO()
	}
}
