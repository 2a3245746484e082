package check

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		want(t, root(), OK, "running as root", "")
	} else {
		want(t, root(), Fail, "running as uid", "as root")
	}
}

func TestHostKernel(t *testing.T) {
	// The kernel that runs this test is new enough.
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	want(t, hostKernel(), OK, unix.ByteSliceToString(name.Release[:]), "")
}

func TestCgroups(t *testing.T) {
	const tmpfs, v1, v2 = unix.TMPFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC
	for _, tc := range []struct {
		name    string
		mounted map[string]int64
		status  Status
		detail  string
		advice  string
	}{
		{"v2", map[string]int64{".": v2, "memory": v2}, OK, "v2", ""},
		{"v1", map[string]int64{".": tmpfs, "memory": v1, "unified": tmpfs}, OK, "v1", ""},
		{"hybrid", map[string]int64{".": tmpfs, "memory": v1, "unified": v2}, OK, "hybrid of v1 and v2", ""},
		{"directories only", map[string]int64{".": tmpfs, "memory": tmpfs}, Fail, "no cgroup hierarchy", "mount -t cgroup2"},
		{"v2 elsewhere", map[string]int64{".": tmpfs, "unified": v2}, Fail, "no cgroup hierarchy", "mount -t cgroup2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name := range tc.mounted {
				if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			want(t, cgroups(dir, func(path string) int64 {
				name, err := filepath.Rel(dir, path)
				if err != nil {
					t.Fatal(err)
				}
				return tc.mounted[name]
			}), tc.status, tc.detail, tc.advice)
		})
	}
	want(t, cgroups("/no/such", magic), Fail, "/no/such", "mount -t cgroup2")
	// The machine that runs this test has cgroups at the usual place.
	want(t, cgroups(cgroupRoot, magic), OK, "v", "")
}

func TestTun(t *testing.T) {
	want(t, tun("/no/such/tun"), Fail, "/no/such/tun", "modprobe tun")
	want(t, tun("/dev/null"), OK, "/dev/null opens", "")
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "a", "b")
	want(t, directory("cache", dir, 1, true), OK, dir+", ", "")
	want(t, directory("cache", missing, 1, true), OK, missing+", to be made, ", "")
	want(t, directory("cache", dir, 1<<40, true), Warn, dir, "husk may need 1099511627776 MiB")

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, directory("cache", file, 1, true), Fail, file+" is not a directory", "remove it")
	want(t, directory("cache", filepath.Join(file, "below"), 1, true), Fail, "not a directory", "another directory")

	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	want(t, directory("cache", open, 1, true), Fail, "others may write to "+open+" (mode 0777)", "chmod go-w "+open)
	want(t, directory("state", open, 1, false), OK, open, "")

	if os.Geteuid() != 0 {
		t.Skip("giving a directory away needs root")
	}
	if err := os.Chmod(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(open, 65534, 0); err != nil {
		t.Fatal(err)
	}
	want(t, directory("cache", open, 1, true), Fail, open+" belongs to uid 65534", "chown 0 "+open)
}

func TestReadOnlyDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	want(t, directory("state", filepath.Join(dir, "husk"), 1, false), Fail, dir+" cannot be written to: read-only", "another directory")
}
