package mounts

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
)

// inMounts moves the test's thread into a new mount namespace whose mounts do not appear
// elsewhere. The thread ends with the test's goroutine.
func inMounts(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	runtime.LockOSThread() // never unlocked, so the thread ends here
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Fatal(err)
	}
	if err := LeaveHost(); err != nil {
		t.Fatal(err)
	}
}

// container is the directory with everything of a test's container.
type container struct {
	t   *testing.T
	dir string
}

func (c container) path(names ...string) string {
	return filepath.Join(append([]string{c.dir}, names...)...)
}

func (c container) write(name, text string) string {
	c.t.Helper()
	at := c.path(name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
	return at
}

func (c container) mkdir(name string) string {
	c.t.Helper()
	at := c.path(name)
	if err := os.MkdirAll(at, 0o755); err != nil {
		c.t.Fatal(err)
	}
	return at
}

// request returns a request with a rootfs, a read-only bind of a directory, a bind of a file,
// and two tmpfs, one on an existing directory and one on a missing one.
func request(t *testing.T) (container, *Request) {
	t.Helper()
	c := container{t, t.TempDir()}
	// The mounts below it, which the test's clean-up could not remove, end with it.
	if err := unix.Mount("tmpfs", c.dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(c.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c.write("rootfs/etc/hostname", "c1")
	c.mkdir("rootfs/tmp")
	c.write("data/file", "data")
	c.write("secret/key", "key")
	c.write("secret/neighbour", "neighbour")
	in := func(name string) string { return filepath.Join(specconv.GuestShareDir, name) }
	return c, &Request{
		ShadowDir: c.mkdir("shadow"), ShareDir: c.mkdir("share"),
		Shares: []specconv.Share{
			{HostPath: c.path("rootfs"), Name: "rootfs", IsDir: true, Recursive: true, Destination: "/"},
			{HostPath: c.path("data"), Name: "mounts/0/data", IsDir: true, ReadOnly: true, Destination: "/data"},
			{HostPath: c.path("secret/key"), Name: "mounts/1/key", Destination: "/run/secrets/key"},
		},
		Mounts: []specs.Mount{
			{Destination: "/data", Type: "bind", Source: in("mounts/0/data"), Options: []string{"bind", "ro"}},
			{Destination: "/run/secrets/key", Type: "bind", Source: in("mounts/1/key"), Options: []string{"bind"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid"}},
			{Destination: "/cache", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid"}},
			{Destination: "/own", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=700"}},
		},
		Cwd:     "/work",
		Devices: []specs.LinuxDevice{{Path: "/dev/fuse"}},
	}
}

func wantText(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s: %q, %v; want %q", path, b, err, want)
	}
}

func wantReadOnly(t *testing.T, path string, want bool) {
	t.Helper()
	err := unix.Access(path, unix.W_OK)
	if got := errors.Is(err, unix.EROFS); got != want {
		t.Errorf("%s: read-only is %v (%v), want %v", path, got, err, want)
	}
}

func TestMake(t *testing.T) {
	inMounts(t)
	c, r := request(t)
	before := slices.Clone(r.Mounts)
	guest, err := Make(r)
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, c.path("shadow/etc/hostname"), "c1")
	wantText(t, c.path("shadow/data/file"), "data")
	wantText(t, c.path("shadow/run/secrets/key"), "key")
	wantReadOnly(t, c.path("shadow/etc"), false)
	wantReadOnly(t, c.path("shadow/data"), true)
	wantReadOnly(t, c.path("shadow/run/secrets/key"), false)
	// A tmpfs of the guest is mounted there, so a tool of the host must get an error.
	wantReadOnly(t, c.path("shadow/tmp"), true)

	wantText(t, c.path("share/rootfs/etc/hostname"), "c1")
	wantText(t, c.path("share/mounts/0/data/file"), "data")
	wantText(t, c.path("share/mounts/1/key"), "key")
	wantReadOnly(t, c.path("share/rootfs"), false)
	wantReadOnly(t, c.path("share/mounts/0/data"), true)
	wantReadOnly(t, c.path("share"), true)
	if _, err := os.Stat(c.path("share/mounts/1/neighbour")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the neighbour of a shared file: %v", err)
	}
	// The guest finds the mount points that were missing.
	for _, name := range []string{"share/rootfs/cache", "share/rootfs/run/secrets/key", "rootfs/own"} {
		if _, err := os.Stat(c.path(name)); err != nil {
			t.Error(err)
		}
	}
	for i, want := range [][]string{{"bind", "ro"}, {"bind"}, {"nosuid"}, {"nosuid", "mode=1777"}, {"mode=700"}} {
		if !slices.Equal(guest[i].Options, want) {
			t.Errorf("the guest's %s has %v, want %v", guest[i].Destination, guest[i].Options, want)
		}
	}
	for i, m := range r.Mounts {
		if !slices.Equal(m.Options, before[i].Options) {
			t.Errorf("the request for %s was changed to %v", m.Destination, m.Options)
		}
	}
	if r.Shares[0].HostPath != c.path("rootfs") {
		t.Errorf("the request's rootfs was changed to %s", r.Shares[0].HostPath)
	}
}

// TestMakeOfAReadOnlyRootfs: what the guest cannot make in a read-only rootfs is made before.
func TestMakeOfAReadOnlyRootfs(t *testing.T) {
	inMounts(t)
	c, r := request(t)
	r.Shares[0].ReadOnly = true
	if _, err := Make(r); err != nil {
		t.Fatal(err)
	}
	wantReadOnly(t, c.path("shadow"), true)
	wantReadOnly(t, c.path("share/rootfs"), true)
	for _, name := range []string{"work", "dev/fuse", "cache"} {
		if _, err := os.Stat(c.path("share/rootfs", name)); err != nil {
			t.Error(err)
		}
	}
}

// TestMountPointStaysInTheRootfs: a destination is resolved inside the rootfs, whatever
// symbolic links an image has.
func TestMountPointStaysInTheRootfs(t *testing.T) {
	inMounts(t)
	c, r := request(t)
	outside := c.mkdir("outside")
	for link, to := range map[string]string{"rootfs/run": outside, "rootfs/cache": "../../outside/made"} {
		if err := os.Symlink(to, c.path(link)); err != nil {
			t.Fatal(err)
		}
	}
	r.Mounts = slices.DeleteFunc(r.Mounts, func(m specs.Mount) bool { return m.Destination == "/tmp" }) // /tmp would cover the test's files
	if _, err := Make(r); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside of the rootfs: %v, %v", left, err)
	}
	wantText(t, c.path("shadow", outside, "secrets/key"), "key")
}

// TestMountsOfHooks: what a hook mounts below the rootfs is in the shadow and in the share.
// Without hooks nothing that is mounted later is in them.
func TestMountsOfHooks(t *testing.T) {
	for name, hooks := range map[string]bool{"with hooks": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			inMounts(t)
			c, r := request(t)
			r.Hooks = hooks
			if _, err := Make(r); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount(c.path("data"), c.path("rootfs/tmp"), "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			_, err := os.Stat(c.path("share/rootfs/tmp/file"))
			if got := err == nil; got != hooks {
				t.Errorf("the guest sees it: %v, want %v", got, hooks)
			}
		})
	}
}

func TestOverlay(t *testing.T) {
	inMounts(t)
	c, r := request(t)
	c.write("layers/lower/file", "lower")
	upper, work := c.mkdir("layers/upper"), c.mkdir("layers/work")
	r.Shares = append(r.Shares, specconv.Share{
		HostPath: "overlay", Name: "mounts/2/overlay", IsDir: true, Destination: "/over",
		Overlay: "lowerdir=" + c.path("layers/lower") + ",upperdir=" + upper + ",workdir=" + work,
	})
	r.Mounts = append(r.Mounts, specs.Mount{Destination: "/over", Type: "bind", Source: specconv.GuestShareDir + "/mounts/2/overlay"})
	if _, err := Make(r); err != nil {
		t.Fatal(err)
	}
	wantText(t, c.path("share/mounts/2/overlay/file"), "lower")
	// Both trees show one filesystem.
	c.write("shadow/over/file", "upper")
	wantText(t, c.path("share/mounts/2/overlay/file"), "upper")
	wantText(t, c.path("layers/upper/file"), "upper")
}

func TestBindWithMappingsThatWereNotPassed(t *testing.T) {
	inMounts(t)
	_, r := request(t)
	r.Shares[1].IDMap = &specconv.MountIDMap{}
	r.IDMaps = func(specconv.Share) *os.File { return nil }
	if _, err := Make(r); err == nil {
		t.Error("a share whose ids are not mapped was mounted")
	}
}
