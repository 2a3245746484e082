//go:build integration

package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Of the tests' user namespaces: what root is outside.
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

// mappedBundle is a bundle whose rootfs is the mapped root's, and can be reached
// by him.
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

// open lets everybody through to a directory of the test.
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

// TestUserNamespace: the container's ids are mapped, and its files have the mapped
// ids outside.
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
	bundle := e.mappedBundle(withScript(script), withUserNS(""),
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

// TestTimeOffsets: the clocks of the container are ahead, for exec as well.
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
		bundle := ""
		if user {
			bundle = e.mappedBundle(append(options, withUserNS(""))...)
		} else {
			bundle = e.bundle(options...)
		}
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
