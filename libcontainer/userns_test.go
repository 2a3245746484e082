package libcontainer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The tests' user namespaces map uids and gids to different ids.
const (
	outerUID = 100000
	outerGID = 200000
)

// newMappedSpec is newSpec with a user namespace, whose root owns the rootfs.
func newMappedSpec(t *testing.T, rootfs, script string) *specs.Spec {
	t.Helper()
	spec := newSpec(rootfs, script)
	l := spec.Linux
	l.Namespaces = append(l.Namespaces, nsOf(specs.UserNamespace))
	l.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: outerUID, Size: 65536}}
	l.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: outerGID, Size: 65536}}
	err := filepath.Walk(rootfs, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, outerUID, outerGID)
	})
	if err != nil {
		t.Fatal(err)
	}
	// By default only their owner may enter test directories.
	for dir := filepath.Dir(rootfs); dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755|os.ModePerm&modeOf(t, dir)); err != nil {
			t.Fatal(err)
		}
	}
	return spec
}

func modeOf(t *testing.T, name string) os.FileMode {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode()
}

func TestUserNamespace(t *testing.T) {
	rootfs := newRootfs(t)
	o := mustRun(t, newMappedSpec(t, rootfs, `id -u; id -g; grep . /proc/self/uid_map /proc/self/gid_map; touch /tmp/made
		echo x >/dev/null; stat -c '%U %a' /dev/null /proc/1/ /tmp/made 2>&1; hostname`))
	contains(t, "ids", o, "0\n0\n")
	text := strings.Join(strings.Fields(o), " ")
	contains(t, "uid map", text, "0 100000 65536")
	contains(t, "gid map", text, "0 200000 65536")
	contains(t, "owners", text, "root 666 root 555 root 644 box")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(rootfs, "tmp/made"), &st); err != nil {
		t.Fatal(err)
	}
	equal(t, "outer owner of a file", st.Uid, outerUID)
	equal(t, "outer group of a file", st.Gid, outerGID)
}

// TestUserNamespaceOwns: the container's root owns the other namespaces.
func TestUserNamespaceOwns(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newMappedSpec(t, rootfs, `mount -t tmpfs tmpfs /tmp && ip addr add 10.0.0.1/32 dev lo && hostname other && mount -t proc proc /root && echo done`)
	for _, set := range []*[]string{&spec.Process.Capabilities.Bounding, &spec.Process.Capabilities.Effective, &spec.Process.Capabilities.Permitted} {
		*set = append([]string{"CAP_SYS_ADMIN", "CAP_NET_ADMIN"}, *set...)
	}
	o := run(t, spec)
	contains(t, "output", o.out+o.err, "done")

	// The container sees nothing of what its root covers.
	spec.Process.Args = []string{"sh", "-c", "ls /..; grep -c . /proc/self/mountinfo; umount -l / 2>/dev/null; ls /.."}
	o = run(t, spec)
	if strings.Contains(o.out, "usr") || strings.Contains(o.out, "device-") || strings.Contains(o.out, "rootfs") {
		t.Errorf("seen: %q %q", o.out, o.err)
	}
}

func TestUserNamespaceProcess(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newMappedSpec(t, rootfs, "id -u; id -g; id -G; echo out >/dev/stdout")
	spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 6}}
	equal(t, "output", mustRun(t, spec), "1000\n1001\n1001 5 6\nout\n")

	spec.Process.User = specs.User{UID: 65536}
	_, err := Create(&Config{ID: "x", Spec: spec})
	if err == nil || err.Error() != "cannot set uid to unmapped user in user namespace" {
		t.Errorf("unmapped user: %v", err)
	}
	spec.Process.User = specs.User{GID: 65536}
	_, err = Create(&Config{ID: "x", Spec: spec})
	if err == nil || err.Error() != "cannot set gid to unmapped user in user namespace" {
		t.Errorf("unmapped group: %v", err)
	}
}

func TestUserNamespaceExec(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	spec := newMappedSpec(t, rootfs, "exec sleep 1000")
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, nsOf(specs.TimeNamespace))
	spec.Linux.TimeOffsets = offsets("boottime", 1_000_000_000)
	c := start(t, &Config{Spec: spec, CgroupRoot: root, CgroupPath: name})
	for _, ns := range []string{"user", "mnt", "net", "pid", "ipc", "uts", "cgroup", "time"} {
		o := exec(t, c, "readlink /proc/1/ns/"+ns+"; readlink /proc/self/ns/"+ns)
		lines := strings.Fields(o.out)
		if len(lines) != 2 || lines[0] != lines[1] {
			t.Errorf("%s namespace: %q %q", ns, o.out, o.err)
		}
	}
	o := exec(t, c, "id -u; grep . /proc/self/uid_map; echo x >/dev/stdout; cat /proc/uptime")
	text := strings.Join(strings.Fields(o.out), " ")
	if !strings.HasPrefix(text, "0 0 100000 65536 x 100") {
		t.Errorf("%q %q", o.out, o.err)
	}
	p := newProcess("tty; id -u; stty size; ls -n /dev/console")
	p.Terminal, p.ConsoleSize = true, &specs.Box{Height: 7, Width: 9}
	term, err := c.Exec(p, true)
	if err != nil {
		t.Fatal(err)
	}
	o = collect(t, term)
	contains(t, "terminal", o.out, "7 9")
	pids, err := c.Pids()
	if err != nil || len(pids) != 1 {
		t.Errorf("pids %v, %v", pids, err)
	}
}

func TestUserNamespaceTerminal(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newMappedSpec(t, rootfs, "echo hello >/dev/tty; echo there >/dev/console; stat -c %u /dev/console; test -t 0 && echo terminal")
	spec.Process.Terminal = true
	spec.Process.User = specs.User{UID: 1000, GID: 1000}
	o := run(t, spec)
	for _, part := range []string{"hello", "there", "1000", "terminal"} {
		contains(t, "output", o.out, part)
	}
}

// TestUserNamespaceBinds: a bind works also if the container's root may not enter the source's
// directory.
func TestUserNamespaceBinds(t *testing.T) {
	rootfs := newRootfs(t)
	private := t.TempDir()
	for _, d := range []string{"shut/dir", "shut/other"} {
		if err := os.MkdirAll(filepath.Join(private, d), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(private, d, "file"), "of "+d+"\n")
	}
	spec := newMappedSpec(t, rootfs, "cat /a/file /b; stat -c %u /a/file; touch /a/new 2>/dev/null || echo no")
	if err := os.Chmod(filepath.Join(private, "shut"), 0o700); err != nil {
		t.Fatal(err)
	}
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Source: filepath.Join(private, "shut/dir"), Destination: "/a", Type: "bind", Options: []string{"bind", "ro"}},
		specs.Mount{Source: filepath.Join(private, "shut/other/file"), Destination: "/b", Type: "bind", Options: []string{"rbind"}},
	)
	equal(t, "output", mustRun(t, spec), "of shut/dir\nof shut/other\n65534\nno\n")
}

func TestUserNamespaceCgroup(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	spec := newMappedSpec(t, rootfs, "mkdir /sys/fs/cgroup/below && echo $$ >/sys/fs/cgroup/below/cgroup.procs && cat /proc/self/cgroup | grep -c below")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid"}})
	c := start(t, &Config{Spec: spec, CgroupRoot: root, CgroupPath: name})
	o := collect(t, c.Init())
	if o.out != "1\n" {
		t.Errorf("with a cgroup of its own: %+v", o)
	}

	// The container does not own a cgroup that is mounted read-only, or that it sees without a
	// cgroup namespace.
	spec.Process.Args[2] = "mkdir /sys/fs/cgroup/below 2>/dev/null || echo no; cat /sys/fs/cgroup/cgroup.procs | grep -c ."
	spec.Mounts[len(spec.Mounts)-1].Options = []string{"ro"}
	c = start(t, &Config{Spec: spec, CgroupRoot: root, CgroupPath: name + "-ro"})
	contains(t, "read-only", collect(t, c.Init()).out, "no\n")
	spec.Mounts[len(spec.Mounts)-1].Options = []string{"ro"}
	spec.Linux.Namespaces = append(spec.Linux.Namespaces[:5:5], spec.Linux.Namespaces[6:]...)
	c = start(t, &Config{Spec: spec, CgroupRoot: root, CgroupPath: name + "-host"})
	contains(t, "without a namespace", collect(t, c.Init()).out, "no\n")
}

func TestUserNamespaceRefused(t *testing.T) {
	rootfs := newRootfs(t)
	for want, change := range map[string]func(*specs.Linux){
		"user namespaces enabled, but no uid mappings found":                                func(l *specs.Linux) { l.UIDMappings = nil },
		"user namespaces enabled, but no gid mappings found":                                func(l *specs.Linux) { l.GIDMappings = nil },
		"user namespaces enabled, but no mapping found for uid 0":                           func(l *specs.Linux) { l.UIDMappings[0].ContainerID = 1 },
		"user namespace mappings specified, but user namespace isn't enabled in the config": func(l *specs.Linux) { l.Namespaces = l.Namespaces[:6] },
		"joining a user namespace by path is not supported":                                 func(l *specs.Linux) { l.Namespaces[6].Path = "/proc/1/ns/user" },
	} {
		spec := newMappedSpec(t, rootfs, "true")
		change(spec.Linux)
		_, err := Create(&Config{ID: "x", Spec: spec})
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
