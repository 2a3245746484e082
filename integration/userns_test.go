//go:build integration

package integration

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ids outside of the tests' user namespaces: those of their root.
const (
	outerUID = 100000
	outerGID = 200000
)

func withUserNS(path string) specOption {
	return func(s *specs.Spec) {
		withNamespace(specs.UserNamespace, path)(s)
		if path == "" {
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: outerUID, Size: 65536}}
			s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: outerGID, Size: 65536}}
		}
	}
}

// mappedBundle returns a bundle whose rootfs belongs to the mapped root, who may enter its
// directory.
func (e *env) mappedBundle(options ...specOption) string {
	e.t.Helper()
	bundle := e.bundle(options...)
	err := filepath.WalkDir(filepath.Join(bundle, "rootfs"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, outerUID, outerGID)
	})
	if err != nil {
		e.t.Fatal(err)
	}
	e.open(bundle)
	return bundle
}

// open lets all users enter a directory of the test.
func (e *env) open(dir string) {
	e.t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err == nil {
			err = os.Chmod(dir, st.Mode()|0o111)
		}
		if err != nil {
			e.t.Fatal(err)
		}
	}
}

// TestUserNamespace: the container's ids are mapped, and its files have the mapped ids outside.
func TestUserNamespace(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	shut := e.mkdir("shut")
	writeFile(t, filepath.Join(shut, "open/file"), "text\n")
	if err := os.Chmod(shut, 0o700); err != nil {
		t.Fatal(err)
	}
	const script = `set -- $(cat /proc/self/uid_map) $(cat /proc/self/gid_map); echo $*; id -u; id -g
		cat /shut/file; touch /shut/new 2>/dev/null || echo not mine
		echo x >/dev/null; hostname
		touch /made && chown 7:8 /made; cat /tmp/a/b/file; echo end; exec sleep 1000`
	// With a limit, because then the counted machine is not in the pid's cgroup at first.
	bundle := e.mappedBundle(withScript(script), withUserNS(""), withMemory(256),
		withBind(filepath.Join(shut, "open"), "/shut"), withBind(filepath.Join(shut, "open/file"), "/tmp/a/b/file"))
	c := e.createStarted(bundle)
	want := "0 100000 65536 0 200000 65536\n0\n0\ntext\nnot mine\nhusk-test\ntext\nend\n"
	want = strings.Replace(want, "husk-test", defaultSpec().Hostname, 1)
	eventually(t, "the container's output", testTimeout, func() bool { return strings.HasSuffix(c.stdout.String(), "end\n") })
	if got := c.stdout.String(); got != want {
		t.Errorf("output %q, want %q; stderr %q", got, want, c.stderr)
	}
	for name, ids := range map[string][2]uint32{"made": {outerUID + 7, outerGID + 8}, "tmp/a": {outerUID, outerGID}, "tmp/a/b/file": {outerUID, outerGID}} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(bundle, "rootfs", name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != ids[0] || st.Gid != ids[1] {
			t.Errorf("%s is %d:%d's outside, want %v", name, st.Uid, st.Gid, ids)
		}
	}
	// The pid on the host is in a user namespace with these mappings too.
	proc := fmt.Sprintf("/proc/%d/", c.pid)
	for file, want := range map[string]string{"uid_map": "0 100000 65536", "gid_map": "0 200000 65536"} {
		if got := strings.Join(strings.Fields(readFile(t, proc+file)), " "); got != want {
			t.Errorf("%s of the pid is %q, want %q", file, got, want)
		}
	}
	if _, err := os.Stat(proc + "root/made"); err != nil {
		t.Errorf("the pid's root: %v", err)
	}
	o := c.exec("sh", "-c", `cat /proc/self/uid_map; [ $(readlink /proc/1/ns/user) = $(readlink /proc/self/ns/user) ] && echo same`).is(0)
	if got := strings.Join(strings.Fields(o.stdout), " "); got != "0 100000 65536 same" {
		t.Errorf("exec: %q", got)
	}
	e.do("exec", "--user", "1000:1001", c.id, "id").is(0)
	if code := e.do("exec", "--user", "70000", c.id, "id").code; code != 255 {
		t.Errorf("exec as a user that is not mapped: exit code %d", code)
	}
	c.stop()
}

// TestUserNamespaceEnds: whatever ends the pid, or the process behind it, ends both, with a
// meaningful exit code.
func TestUserNamespaceEnds(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.mappedBundle(withScript("trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done"), withUserNS("")))
	eventually(t, "the container's output", testTimeout, func() bool { return c.stdout.String() == "up\n" })
	if err := unix.Kill(c.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.exits(7)
	c.e.ok("delete", c.id)

	c = e.createStarted(e.mappedBundle(withArgs("sleep", "1000"), withUserNS("")))
	if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.exits(128 + int(unix.SIGKILL))
	if got := c.status(); got != "stopped" {
		t.Errorf("status %s", got)
	}
	c.e.ok("delete", c.id)

	c = e.create(e.mappedBundle(withArgs("sleep", "1000"), withUserNS("")))
	c.stop() // in the created state

	c = e.createStarted(e.mappedBundle(withArgs("sleep", "1000"), withUserNS("")))
	if runtimeName == "husk" {
		children := strings.Fields(readFile(t, fmt.Sprintf("/proc/%d/task/%d/children", c.pid, c.pid)))
		if len(children) != 1 {
			t.Fatalf("children of the pid: %v", children)
		}
		behind, err := strconv.Atoi(children[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(behind, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.exits(128 + int(unix.SIGKILL))
		c.e.ok("delete", c.id)
		return
	}
	c.stop()
}

// TestUserNamespaceJoined: a container uses the mappings and the namespace of another
// container's user namespace, by its pid and by a file.
func TestUserNamespaceJoined(t *testing.T) {
	needVM(t) // runc 1.1 does not read the mappings of a joined namespace
	t.Parallel()
	e := newEnv(t)
	first := e.createStarted(e.mappedBundle(withArgs("sleep", "1000"), withUserNS("")))
	ns := fmt.Sprintf("/proc/%d/ns/user", first.pid)
	want, err := os.Readlink(ns)
	if err != nil {
		t.Fatal(err)
	}
	file := e.path("userns")
	writeFile(t, file, "")
	if err := unix.Mount(ns, file, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(file, unix.MNT_DETACH)
	for _, path := range []string{ns, file} {
		c := e.createStarted(e.mappedBundle(withArgs("sleep", "1000"), withUserNS(path)))
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", c.pid)); err != nil || got != want {
			t.Errorf("joined %s by %s, want %s: %v", got, path, want, err)
		}
		o := c.exec("cat", "/proc/self/uid_map", "/proc/self/gid_map").is(0)
		if got := strings.Join(strings.Fields(o.stdout), " "); got != "0 100000 65536 0 200000 65536" {
			t.Errorf("mappings %q", got)
		}
		c.stop()
	}
	first.stop()
	o := e.do("run", "--bundle", e.mappedBundle(withUserNS("/proc/self/ns/user")), e.id()).is(1)
	if !strings.Contains(o.stderr, "it is the user namespace of the host") {
		t.Errorf("the host's own: %q", o.stderr)
	}
}

// TestTimeOffsets: the container's clocks are ahead, for exec'd processes too.
func TestTimeOffsets(t *testing.T) {
	needVM(t) // older runc has no time namespaces
	t.Parallel()
	e := newEnv(t)
	for _, user := range []bool{false, true} {
		options := []specOption{
			withScript("cat /proc/uptime; exec sleep 1000"), withNamespace(specs.TimeNamespace, ""),
			func(s *specs.Spec) {
				s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1_000_000_000}, "monotonic": {Secs: 2, Nanosecs: 3}}
			},
		}
		bundleOf := e.bundle
		if user {
			bundleOf, options = e.mappedBundle, append(options, withUserNS(""))
		}
		bundle := bundleOf(options...)
		c := e.createStarted(bundle)
		eventually(t, "the container's output", testTimeout, func() bool { return strings.HasSuffix(c.stdout.String(), "\n") })
		o := c.exec("sh", "-c", "cat /proc/uptime; cat /proc/self/timens_offsets; readlink /proc/1/ns/time; readlink /proc/self/ns/time").is(0)
		got := strings.Fields(o.stdout)
		if !strings.HasPrefix(c.stdout.String(), "1000000") || len(got) != 10 || !strings.HasPrefix(got[0], "1000000") || got[8] != got[9] {
			t.Errorf("with a user namespace %t: %q, exec %q", user, c.stdout, o.stdout)
		}
		if offsets := fmt.Sprint(got[2:8]); offsets != "[monotonic 2 3 boottime 1000000000 0]" {
			t.Errorf("offsets %s", offsets)
		}
		c.stop()
	}
}

// TestIDMappedMount: the files of a bind have other ids than on the disk, alone and together
// with a user namespace.
func TestIDMappedMount(t *testing.T) {
	needVM(t) // older runc has no id-mapped mounts
	t.Parallel()
	e := newEnv(t)
	source := e.mkdir("source")
	writeFile(t, filepath.Join(source, "file"), "text\n")
	if err := os.Chown(filepath.Join(source, "file"), 3, 4); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(source, 0o777); err != nil {
		t.Fatal(err)
	}
	mount := specs.Mount{
		Source: source, Destination: "/mapped", Type: "bind", Options: []string{"bind"},
		UIDMappings: []specs.LinuxIDMapping{{ContainerID: 0, HostID: outerUID, Size: 1000}},
		GIDMappings: []specs.LinuxIDMapping{{ContainerID: 0, HostID: outerGID, Size: 1000}},
	}
	const script = "stat -c '%u %g' /mapped/file; touch /mapped/new 2>/dev/null && stat -c '%u %g' /mapped/new; rm -f /mapped/new"
	o := e.do("run", "--bundle", e.bundle(withScript(script), withMount(mount)), e.id()).is(0)
	if o.stdout != fmt.Sprintf("%d %d\n", outerUID+3, outerGID+4) {
		t.Errorf("without a user namespace: %q %q", o.stdout, o.stderr)
	}
	keep := strings.TrimSuffix(script, "; rm -f /mapped/new")
	o = e.do("run", "--bundle", e.mappedBundle(withScript(keep), withMount(mount), withUserNS("")), e.id()).is(0)
	if o.stdout != "3 4\n0 0\n" {
		t.Errorf("with a user namespace: %q %q", o.stdout, o.stderr)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(source, "new"), &st); err != nil || st.Uid != 0 || st.Gid != 0 {
		t.Errorf("the file made is %d:%d's on the disk, %v", st.Uid, st.Gid, err)
	}
	mount.UIDMappings, mount.GIDMappings = nil, nil
	mount.Options = append(mount.Options, "idmap")
	o = e.do("run", "--bundle", e.mappedBundle(withScript("stat -c '%u %g' /mapped/file"), withMount(mount), withUserNS("")), e.id()).is(0)
	if o.stdout != "3 4\n" {
		t.Errorf("with the container's mappings: %q %q", o.stdout, o.stderr)
	}
	mount.Source = "/proc/sys"
	e.do("run", "--bundle", e.mappedBundle(withScript("true"), withMount(mount), withUserNS("")), e.id()).is(1)
}

// TestNetDevice: an interface of the runtime's network namespace becomes the container's under
// another name, with its addresses.
func TestNetDevice(t *testing.T) {
	needVM(t) // older runc knows nothing of them
	t.Parallel()
	e := newEnv(t)
	host := e.netNS()
	defer host.remove()
	host.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "give0", 1400
		attrs.HardwareAddr = net.HardwareAddr{0x02, 0x11, 0x22, 0x33, 0x44, 0x55}
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "stay0"}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return netlink.AddrAdd(veth, addr(t, "10.97.0.2/24"))
	})
	bundle := e.bundle(withScript("ip addr show dev eth0; ls /sys/class/net"), func(s *specs.Spec) {
		s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"give0": {Name: "eth0"}}
	})
	var o *result
	host.do(func() error {
		o = e.do("run", "--bundle", bundle, e.id())
		return nil
	})
	o.is(0)
	for _, part := range []string{"mtu 1400", "02:11:22:33:44:55", "10.97.0.2/24", "UP"} {
		if !strings.Contains(o.stdout, part) {
			t.Errorf("%q lacks %q", o.stdout, part)
		}
	}
	if !strings.HasSuffix(o.stdout, "eth0\nlo\n") {
		t.Errorf("interfaces: %q", o.stdout)
	}
	host.do(func() error {
		o = e.do("run", "--bundle", bundle, e.id())
		return nil
	})
	o.fails(1, "husk run failed: move network device give0: Link not found")
}
