//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// nsOf returns the identity of a process's namespace.
func nsOf(t *testing.T, pid int, name string) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// TestNamespacesOfPID: engines, pod members and the validation suite look at /proc/PID/ns/* of
// the process in the pid file, already in the created state.
func TestNamespacesOfPID(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withArgs("sleep", "1000"), withNamespace(specs.CgroupNamespace, "")))
	for _, kind := range []string{"pid", "net", "ipc", "uts", "mnt", "cgroup"} {
		if nsOf(t, c.pid, kind) == nsOf(t, os.Getpid(), kind) {
			t.Errorf("the %s namespace is the host's though a new one was asked for", kind)
		}
	}
	if nsOf(t, c.pid, "user") != nsOf(t, os.Getpid(), "user") {
		t.Error("a user namespace nobody asked for")
	}
	c.stop()
}

func TestNamespacesOfHost(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withArgs("sleep", "1000"), withoutNamespace(specs.PIDNamespace), withoutNamespace(specs.IPCNamespace),
		withoutNamespace(specs.UTSNamespace), func(s *specs.Spec) {
			s.Hostname = ""
			s.Annotations = map[string]string{"org.huskvm.pid": "private", "org.huskvm.ipc": "private"}
		}))
	for _, kind := range []string{"pid", "ipc", "uts", "user", "cgroup"} {
		if nsOf(t, c.pid, kind) != nsOf(t, os.Getpid(), kind) {
			t.Errorf("a %s namespace nobody asked for", kind)
		}
	}
	e.ok("start", c.id)
	c.stop()
}

// TestHostNamespacesAreRefused: a host namespace that a container cannot share is refused.
// Otherwise the container would start and not find the host's.
func TestHostNamespacesAreRefused(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	for kind, says := range map[specs.LinuxNamespaceType]string{
		specs.PIDNamespace: "leave --pid host out", specs.IPCNamespace: "leave --ipc host out", specs.NetworkNamespace: "org.huskvm.network=none",
	} {
		r := e.do("run", "--bundle", e.bundle(withoutNamespace(kind)), e.id()).is(1)
		if !strings.Contains(r.stderr, says) {
			t.Errorf("without a %s namespace: %q does not say %q", kind, r.stderr, says)
		}
	}
}

// TestNameOfUTSNamespace: a container without a hostname has that of its uts namespace: the
// host's, another container's, or that of a new one, which is a copy of the host's.
func TestNameOfUTSNamespace(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	noName := func(s *specs.Spec) { s.Hostname = "" }
	other := e.createStarted(e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) { s.Hostname = "other-name" }))
	for what, c := range map[string]struct {
		uts  specOption
		want string
	}{
		"host":      {withoutNamespace(specs.UTSNamespace), own},
		"container": {withNamespace(specs.UTSNamespace, fmt.Sprintf("/proc/%d/ns/uts", other.pid)), "other-name"},
		"new":       {withNamespace(specs.UTSNamespace, ""), own},
	} {
		if out := e.ok("run", "--bundle", e.bundle(withArgs("hostname"), c.uts, noName), e.id()); out != c.want+"\n" {
			t.Errorf("%s: the name is %q, want %q", what, out, c.want)
		}
	}
	other.stop()
}

// TestNoNamespaces: with a config without namespaces the pid is in the host's, with the rootfs
// as its root, and the container leaves no trace in them.
func TestNoNamespaces(t *testing.T) {
	needVM(t) // runc leaves the container's mounts behind
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withScript("echo inside > /file; ls /sys/class/net; exec sleep 1000"), func(s *specs.Spec) {
		s.Hostname = ""
		s.Linux.Namespaces = nil
	})
	mounts := readFile(t, "/proc/self/mountinfo")
	c := e.createStarted(bundle)
	c.stdout.expect(t, "lo\n")
	for _, kind := range []string{"mnt", "net", "pid", "ipc", "uts", "user", "cgroup"} {
		if nsOf(t, c.pid, kind) != nsOf(t, os.Getpid(), kind) {
			t.Errorf("a %s namespace nobody asked for", kind)
		}
	}
	if got := readFile(t, fmt.Sprintf("/proc/%d/root/file", c.pid)); got != "inside\n" {
		t.Errorf("the container's file through the pid: %q", got)
	}
	if strings.Contains(mounts, bundle) != strings.Contains(readFile(t, "/proc/self/mountinfo"), bundle) {
		t.Error("mounts of the container show on the host")
	}
	if r := c.exec("cat", "/file").is(0); r.stdout != "inside\n" || c.stdout.String() != "lo\n" {
		t.Errorf("exec: %q; interfaces: %q", r.stdout, c.stdout)
	}
	c.stop()
}

// TestNamespacesJoined: a member of a pod, of podman or CRI, names the namespaces of its
// sandbox.
func TestNamespacesJoined(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	holder := exec.Command("unshare", "--ipc", "--uts", "--net", "--mount", "sleep", "1000")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	}()
	pid := holder.Process.Pid
	eventually(t, "the namespaces are there", testTimeout, func() bool { return strings.HasPrefix(describe(pid), "sleep") })
	path := func(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, kind) }
	c := e.create(e.bundle(withArgs("sleep", "1000"), withNamespace(specs.IPCNamespace, path("ipc")),
		withNamespace(specs.UTSNamespace, path("uts")), withNamespace(specs.NetworkNamespace, path("net")),
		func(s *specs.Spec) { s.Hostname = "" }, func(s *specs.Spec) {
			if isVM { // runc mounts there and removes nothing of it
				withNamespace(specs.MountNamespace, path("mnt"))(s)
			}
		}))
	kinds := []string{"ipc", "uts", "net"}
	if isVM {
		kinds = append(kinds, "mnt")
	}
	for _, kind := range kinds {
		if nsOf(t, c.pid, kind) != nsOf(t, pid, kind) {
			t.Errorf("the %s namespace is not the one given", kind)
		}
	}
	e.ok("start", c.id)
	c.stop()
}

// TestRootOfPID: `podman cp` enters the pid's mount namespace and writes. The files must be in
// the container's rootfs and binds, never on the host.
func TestRootOfPID(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	volume := e.mkdir("volume")
	writeFile(t, filepath.Join(volume, "inside"), "bind")
	single := filepath.Join(e.mkdir("single"), "file")
	writeFile(t, single, "single")
	c := e.createStarted(e.bundle(withScript("touch /ready; exec sleep 1000"), withBind(volume, "/mnt/volume", "rbind", "rw"),
		withBind(single, "/etc/single", "rbind", "rw")))
	root := fmt.Sprintf("/proc/%d/root", c.pid)
	if got := readFile(t, root+"/mnt/volume/inside"); got != "bind" {
		t.Errorf("the bind through the pid: %q", got)
	}
	if got := readFile(t, root+"/etc/single"); got != "single" {
		t.Errorf("the single-file bind through the pid: %q", got)
	}
	if _, err := os.Stat(root + "/bin/testprog"); err != nil {
		t.Errorf("the pid's root is not the rootfs: %v", err)
	}
	writeFile(t, root+"/written", "through the pid")
	if got := readFile(t, filepath.Join(c.bundle, "rootfs/written")); got != "through the pid" {
		t.Errorf("written through the pid: %q in the rootfs", got)
	}

	// The same by setns, as podman and nsenter do it.
	enter := exec.Command("nsenter", "--target", fmt.Sprint(c.pid), "--mount", "--pid", "--root", "--wd",
		"/bin/sh", "-c", "echo entered > /entered; echo vol > /mnt/volume/entered; ls /proc | grep -c '^[0-9]'")
	out, err := enter.CombinedOutput()
	if err != nil {
		t.Fatalf("nsenter: %v: %s", err, out)
	}
	if readFile(t, filepath.Join(c.bundle, "rootfs/entered")) != "entered\n" || readFile(t, filepath.Join(volume, "entered")) != "vol\n" {
		t.Error("what was written after setns is not in the container's files")
	}
	if _, err := os.Stat("/entered"); err == nil {
		t.Error("setns into the pid's mount namespace wrote onto the host")
	}
	// The pid's /proc does not show the host's processes.
	var n int
	if _, err := fmt.Sscan(string(out), &n); err != nil || n > 20 {
		t.Errorf("/proc after setns shows %q processes", out)
	}
	// The container sees what was written from outside.
	if r := c.exec("cat", "/written", "/entered", "/mnt/volume/entered").is(0); r.stdout != "through the pidentered\nvol\n" {
		t.Errorf("seen inside: %q", r.stdout)
	}
	c.stop()
}

// TestArgvOfPID: `docker top` shows the host's command line of the pid.
func TestArgvOfPID(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	args := []string{"sleep", "1000"}
	c := e.createStarted(e.bundle(withArgs(args...)))
	eventually(t, "the pid shows the container's argv", testTimeout, func() bool { return describe(c.pid) == "sleep 1000" })
	c.stop()
}

// TestPIDFileIsRenamed: the pid file is complete when create returns, and no temporary file is
// left.
func TestPIDFileIsRenamed(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	dir, id := e.mkdir("pids"), e.id()
	pidFile := filepath.Join(dir, "pid")
	e.detach(pidFile, "create", "--bundle", e.bundle(), "--pid-file", pidFile, id)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the pid file: %v, %v", entries, err)
	}
	e.ok("delete", "--force", id)
}

// TestParentDeathSignalIsNotInherited: the shim and conmon start the runtime with PDEATHSIG,
// which applies to the cli only.
func TestParentDeathSignalIsNotInherited(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createWith(call{attr: &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}}, e.bundle(withArgs("sleep", "1000")))
	e.ok("start", c.id)
	if !alive(c.pid) || c.status() != "running" {
		t.Error("the container has died with the cli's parent-death signal")
	}
	c.stop()
}

// TestEmptyEnvironment: podman calls the runtime with an empty XDG_RUNTIME_DIR and PATH only,
// newer ones even without PATH, in the working directory /.
func TestEmptyEnvironment(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createWith(call{dir: "/", env: []string{"XDG_RUNTIME_DIR="}}, e.bundle(withArgs("sleep", "1000")))
	bare := call{dir: "/", env: []string{"XDG_RUNTIME_DIR="}}
	for _, args := range [][]string{{"start", c.id}, {"pause", c.id}, {"resume", c.id}, {"kill", c.id, "9"}} {
		e.start(bare, args...).wait().is(0)
	}
	c.exits(137)
	e.start(bare, "delete", "--force", c.id).wait().is(0)
}

// TestEnvironmentDoesNotLeak: the container gets nothing of the daemon's environment.
func TestEnvironmentDoesNotLeak(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createWith(call{env: append(os.Environ(), "DAEMON_SECRET=leaked", "LD_LIBRARY_PATH=/nosuch", "GOMAXPROCS=4")},
		e.bundle(withArgs("env")))
	e.ok("start", c.id)
	c.exits(0)
	if strings.Contains(c.stdout.String(), "DAEMON_SECRET") || strings.Contains(c.stdout.String(), "GOMAXPROCS") {
		t.Errorf("environment inside: %s", c.stdout)
	}
	e.ok("delete", c.id)
}

// TestGuestsTmpfsIsReadOnlyOnHost: podman cp writes through the pid's mount namespace. It
// cannot write to a tmpfs of the guest, and must get an error.
func TestGuestsTmpfsIsReadOnlyOnHost(t *testing.T) {
	needVM(t) // runc's is the container's own
	t.Parallel()
	e := newEnv(t)
	volume := t.TempDir()
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"),
		withMount(specs.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs"}),
		withMount(specs.Mount{Destination: "/scratch/volume", Type: "bind", Source: volume, Options: []string{"rbind"}})))
	root := fmt.Sprintf("/proc/%d/root", c.pid)
	if err := os.WriteFile(filepath.Join(root, "scratch/file"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write into the guest's tmpfs: %v, want %v", err, unix.EROFS)
	}
	if err := os.WriteFile(filepath.Join(root, "scratch/volume/file"), nil, 0o644); err != nil {
		t.Errorf("write into a volume below it: %v", err)
	}
	c.stop()
}
