package libcontainer

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestMain(m *testing.M) {
	if IsInit() {
		InitStage()
	}
	os.Exit(m.Run())
}

const busybox = "/bin/busybox"

// waitLimit is how long a test waits for something that normally takes milliseconds.
const waitLimit = 30 * time.Second

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("namespaces and mounts need root")
	}
}

// newRootfs makes a root filesystem with busybox in it. All mounts on it are made in the
// container's mount namespace, so its directory can be removed afterwards.
func newRootfs(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatalf("package busybox-static is needed: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{
		"sh", "cat", "true", "false", "sleep", "ls", "id", "stat", "mount", "touch", "stty",
		"mkdir", "hostname", "pwd", "kill", "ip", "env", "head", "wc", "readlink", "grep", "ps", "test", "dd", "rm", "setsid",
	} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:u:/home/user:/bin/sh\n")
	return dir
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var dockerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// newProcess returns a process that runs a shell script, as engines describe one.
func newProcess(script string) *specs.Process {
	return &specs.Process{
		Args: []string{"sh", "-c", script},
		Env:  []string{"PATH=/bin"},
		Cwd:  "/",
		Capabilities: &specs.LinuxCapabilities{
			Bounding:  dockerCaps,
			Effective: dockerCaps,
			Permitted: dockerCaps,
		},
	}
}

// newSpec returns a container that runs a shell script, as engines describe one.
func newSpec(rootfs, script string) *specs.Spec {
	return &specs.Spec{
		Version:  specs.Version,
		Process:  newProcess(script),
		Root:     &specs.Root{Path: rootfs},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{
				Destination: "/dev/pts", Type: "devpts", Source: "devpts",
				Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
			},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=1m"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/acpi", "/proc/timer_list", "/sys/firmware", "/no/such"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/irq", "/no/such"},
		},
	}
}

// create makes a container and destroys it at the test's end.
func create(t testing.TB, cfg *Config) *Container {
	t.Helper()
	if cfg.ID == "" {
		cfg.ID = t.Name()
	}
	c, err := Create(cfg)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	t.Cleanup(func() { destroy(t, c) })
	return c
}

func destroy(t testing.TB, c *Container) {
	t.Helper()
	if err := c.Destroy(); err != nil {
		t.Errorf("destroy: %v", err)
	}
	c.Init().CloseIO()
}

func start(t testing.TB, cfg *Config) *Container {
	t.Helper()
	c := create(t, cfg)
	if err := c.Start(); err != nil {
		t.Fatalf("start: %v", err)
	}
	return c
}

// output is what a process wrote, and its exit code.
type output struct {
	out, err string
	code     int
}

// collect closes the process's stdin, reads its output to the end and waits.
func collect(t testing.TB, p *Process) output {
	t.Helper()
	var o, e bytes.Buffer
	var wg sync.WaitGroup
	if p.Console != nil {
		// Reading the master gives EIO when the last process has closed the terminal.
		wg.Go(func() { _, _ = io.Copy(&o, p.Console) })
	} else {
		_ = p.Stdin.Close()
		wg.Go(func() { _, _ = io.Copy(&o, p.Stdout) })
		wg.Go(func() { _, _ = io.Copy(&e, p.Stderr) })
	}
	st := wait(t, p)
	wg.Wait()
	return output{o.String(), e.String(), st.Code}
}

func wait(t testing.TB, p *Process) ExitStatus {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(waitLimit):
		t.Fatalf("process %d does not end", p.PID())
	}
	st, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// run runs a container to its end.
func run(t testing.TB, spec *specs.Spec) output {
	t.Helper()
	c := start(t, &Config{Spec: spec})
	return collect(t, c.Init())
}

// mustRun runs a container whose script must succeed and returns its stdout.
func mustRun(t testing.TB, spec *specs.Spec) string {
	t.Helper()
	o := run(t, spec)
	if o.code != 0 || o.err != "" {
		t.Fatalf("exit code %d, stdout %q, stderr %q", o.code, o.out, o.err)
	}
	return o.out
}

// exec runs a script in a container to its end.
func exec(t testing.TB, c *Container, script string) output {
	t.Helper()
	p, err := c.Exec(newProcess(script), false)
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	defer p.CloseIO()
	return collect(t, p)
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func contains(t testing.TB, what, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%s: %q lacks %q", what, text, part)
	}
}

// cgroup2 returns the host's cgroup2 mount, and a path in it for the test.
func cgroup2(t testing.TB) (root, name string) {
	t.Helper()
	needRoot(t)
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			const parent = "/husk-libcontainer-test"
			// Clean-ups run in reverse order, so this one runs after the container's.
			t.Cleanup(func() { _ = unix.Rmdir(dir + parent) })
			return dir, parent + "/" + strings.ReplaceAll(t.Name(), "/", "_")
		}
	}
	t.Fatal("no cgroup2 filesystem is mounted")
	return "", ""
}

func nsOf(t specs.LinuxNamespaceType) specs.LinuxNamespace { return specs.LinuxNamespace{Type: t} }

func offsets(clock string, secs int64) map[string]specs.LinuxTimeOffset {
	return map[string]specs.LinuxTimeOffset{clock: {Secs: secs}}
}
