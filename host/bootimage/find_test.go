package bootimage

import (
	"bytes"
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/huskvm/husk/host/distro"
)

// fakeHost is a directory that stands for a host's root.
type fakeHost struct {
	t    testing.TB
	root string
}

func newFakeHost(t testing.TB) *fakeHost { return &fakeHost{t, t.TempDir()} }

func (h *fakeHost) path(p string) string { return filepath.Join(h.root, p) }

func (h *fakeHost) write(p string, b []byte) string {
	h.t.Helper()
	p = h.path(p)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(p, b, 0o644); err != nil {
		h.t.Fatal(err)
	}
	return p
}

// fakeDep is a modules.dep like Debian's. In a line the dependencies are to be loaded from
// right to left.
const fakeDep = `kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_mmio.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/virtio_console.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/hw_random/virtio-rng.ko.xz: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/net/9p/9pnet.ko.zst:
kernel/net/9p/9pnet_virtio.ko.gz: kernel/net/9p/9pnet.ko.zst kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/fs/fscache/fscache.ko: kernel/fs/netfs/netfs.ko
kernel/fs/netfs/netfs.ko:
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko.zst kernel/fs/fscache/fscache.ko kernel/fs/netfs/netfs.ko
kernel/drivers/net/tun.ko: kernel/net/tunnel.ko kernel/drivers/virtio/virtio.ko
kernel/net/tunnel.ko:
kernel/drivers/net/e1000.ko:
`

func fakeModule(name string) []byte { return append([]byte("\x7fELF module "), name...) }

// modules writes a module directory with this modules.dep. The suffix of a module's name says
// how its file is compressed.
func (h *fakeHost) modules(dir, dep, builtin string) {
	h.t.Helper()
	h.write(dir+"/modules.dep", []byte(dep))
	h.write(dir+"/modules.builtin", []byte(builtin))
	entries, err := parseModulesDep(strings.NewReader(dep))
	if err != nil {
		h.t.Fatal(err)
	}
	for name, e := range entries {
		b := fakeModule(name)
		switch filepath.Ext(e.path) {
		case ".gz":
			b = packGzip(h.t, b)
		case ".xz":
			b = packXZ(h.t, b)
		case ".zst":
			b = packZstd(h.t, b)
		}
		h.write(filepath.Join(dir, e.path), b)
	}
}

func (h *fakeHost) kernel(path, release string) string {
	return h.write(path, fakeBzImage(release+" (x)", packGzip(h.t, fakeVMLinux())))
}

// distribution puts the files of a complete kernel package on the host.
func (h *fakeHost) distribution(release string) string {
	h.modules("/lib/modules/"+release, fakeDep, "")
	return h.kernel("/boot/vmlinuz-"+release, release)
}

func withoutLines(s, substring string) string {
	return strings.Join(slices.DeleteFunc(strings.SplitAfter(s, "\n"), func(l string) bool { return strings.Contains(l, substring) }), "")
}

func TestFind(t *testing.T) {
	for _, c := range []struct {
		name   string
		set    func(h *fakeHost) Settings
		path   string // relative to the root
		origin string
		mods   string // below the root, "" for none
		passed []string
	}{
		{"newest by number", func(h *fakeHost) Settings {
			for _, r := range []string{"6.1.0-9-amd64", "6.1.0-10-amd64", "5.10.0-30-amd64"} {
				h.distribution(r)
			}
			return Settings{}
		}, "/boot/vmlinuz-6.1.0-10-amd64", OriginDistribution, "/lib/modules/6.1.0-10-amd64", nil},
		{"release in the header counts", func(h *fakeHost) Settings {
			h.modules("/lib/modules/6.1.7-custom", fakeDep, "")
			h.kernel("/boot/vmlinuz-6.1.0", "6.1.7-custom")
			return Settings{}
		}, "/boot/vmlinuz-6.1.0", OriginDistribution, "/lib/modules/6.1.7-custom", nil},
		{"release by name", func(h *fakeHost) Settings {
			h.modules("/lib/modules/6.1.0-1", fakeDep, "")
			h.kernel("/boot/vmlinuz-6.1.0-1", "")
			return Settings{}
		}, "/boot/vmlinuz-6.1.0-1", OriginDistribution, "/lib/modules/6.1.0-1", nil},
		{"cloud kernel passed over", func(h *fakeHost) Settings {
			h.distribution("6.1.0-9-amd64")
			h.kernel("/boot/vmlinuz-6.1.0-10-cloud-amd64", "6.1.0-10-cloud-amd64")
			h.modules("/lib/modules/6.1.0-10-cloud-amd64", withoutLines(fakeDep, "9p"), "")
			return Settings{}
		}, "/boot/vmlinuz-6.1.0-9-amd64", OriginDistribution, "/lib/modules/6.1.0-9-amd64", []string{"no 9p"}},
		{"no modules, no kernel, left-overs passed over", func(h *fakeHost) Settings {
			h.distribution("6.1.0-9-amd64")
			h.kernel("/boot/vmlinuz-6.1.0-10-amd64", "6.1.0-10-amd64")
			h.write("/boot/vmlinuz-6.2.0", []byte("not a kernel at all"))
			h.kernel("/boot/vmlinuz-6.3.0.old", "6.3.0")
			return Settings{}
		}, "/boot/vmlinuz-6.1.0-9-amd64", OriginDistribution, "/lib/modules/6.1.0-9-amd64", []string{"neither a bzImage", "its modules are not in"}},
		{"Arch: no release in the name", func(h *fakeHost) Settings {
			h.modules("/usr/lib/modules/6.12.1-arch1-1", fakeDep, "")
			h.kernel("/boot/vmlinuz-linux", "6.12.1-arch1-1")
			return Settings{}
		}, "/boot/vmlinuz-linux", OriginDistribution, "/usr/lib/modules/6.12.1-arch1-1", nil},
		{"Alpine: the newer of two flavours", func(h *fakeHost) Settings {
			h.modules("/lib/modules/6.6.58-0-lts", fakeDep, "")
			h.modules("/lib/modules/6.6.50-0-virt", fakeDep, "")
			h.kernel("/boot/vmlinuz-lts", "6.6.58-0-lts")
			h.kernel("/boot/vmlinuz-virt", "6.6.50-0-virt")
			return Settings{}
		}, "/boot/vmlinuz-lts", OriginDistribution, "/lib/modules/6.6.58-0-lts", nil},
		{"Fedora: beside its modules, and nothing but a rescue image in /boot", func(h *fakeHost) Settings {
			h.modules("/lib/modules/6.11.4-301.fc41.x86_64", fakeDep, "")
			h.kernel("/lib/modules/6.11.4-301.fc41.x86_64/vmlinuz", "6.11.4-301.fc41.x86_64")
			h.kernel("/boot/vmlinuz-0-rescue-0123456789", "6.11.5-301.fc41.x86_64")
			return Settings{}
		}, "/lib/modules/6.11.4-301.fc41.x86_64/vmlinuz", OriginDistribution, "/lib/modules/6.11.4-301.fc41.x86_64", nil},
		{"systemd-boot", func(h *fakeHost) Settings {
			h.modules("/usr/lib/modules/6.11.4", fakeDep, "")
			h.kernel("/boot/0123456789abcdef/6.11.4/linux", "6.11.4")
			return Settings{}
		}, "/boot/0123456789abcdef/6.11.4/linux", OriginDistribution, "/usr/lib/modules/6.11.4", nil},
		{"unified kernel image", func(h *fakeHost) Settings {
			h.modules("/usr/lib/modules/6.11.4", fakeDep, "")
			h.write("/boot/EFI/Linux/arch-linux.efi", fakeUKI(".linux", fakeBzImage("6.11.4 (x)", packGzip(h.t, fakeVMLinux()))))
			return Settings{}
		}, "/boot/EFI/Linux/arch-linux.efi", OriginDistribution, "/usr/lib/modules/6.11.4", nil},
		{"NixOS", func(h *fakeHost) Settings {
			h.modules("/run/booted-system/kernel-modules/lib/modules/6.6.60", fakeDep, "")
			h.kernel("/run/booted-system/kernel", "6.6.60")
			return Settings{}
		}, "/run/booted-system/kernel", OriginDistribution, "/run/booted-system/kernel-modules/lib/modules/6.6.60", nil},
		{"one kernel in two places is looked at once", func(h *fakeHost) Settings {
			h.distribution("6.1.0-9-amd64")
			h.kernel("/boot/vmlinuz-6.2.0", "6.2.0")
			h.modules("/lib/modules/6.2.0", withoutLines(fakeDep, "9p"), "")
			h.kernel("/lib/modules/6.2.0/vmlinuz", "6.2.0")
			return Settings{}
		}, "/boot/vmlinuz-6.1.0-9-amd64", OriginDistribution, "/lib/modules/6.1.0-9-amd64", []string{"no 9p"}},
		{"a link to nothing", func(h *fakeHost) Settings {
			h.distribution("6.1.0-9-amd64")
			if err := os.Symlink("vmlinuz-6.3.0", h.path("/boot/vmlinuz")); err != nil {
				h.t.Fatal(err)
			}
			return Settings{}
		}, "/boot/vmlinuz-6.1.0-9-amd64", OriginDistribution, "/lib/modules/6.1.0-9-amd64", nil},
		{"husk's own first, all built in", func(h *fakeHost) Settings {
			h.distribution("6.1.0-9-amd64")
			h.kernel("/usr/lib/husk/vmlinuz", "6.1.0-husk")
			return Settings{}
		}, "/usr/lib/husk/vmlinuz", OriginHusk, "", nil},
		{"husk's own with modules", func(h *fakeHost) Settings {
			h.kernel("/usr/lib/husk/vmlinuz", "6.1.0-husk")
			h.modules("/usr/lib/husk/modules", fakeDep, "")
			return Settings{}
		}, "/usr/lib/husk/vmlinuz", OriginHusk, "/usr/lib/husk/modules", nil},
		{"configured", func(h *fakeHost) Settings {
			h.kernel("/usr/lib/husk/vmlinuz", "6.1.0-husk")
			h.modules("/lib/modules/6.6.0", fakeDep, "")
			return Settings{Kernel: h.kernel("/srv/bzImage", "6.6.0")}
		}, "/srv/bzImage", OriginConfigured, "/lib/modules/6.6.0", nil},
		{"configured with modules", func(h *fakeHost) Settings {
			h.modules("/srv/mods", fakeDep, "")
			return Settings{Kernel: h.kernel("/srv/bzImage", "6.6.0"), Modules: h.path("/srv/mods")}
		}, "/srv/bzImage", OriginConfigured, "/srv/mods", nil},
		{"configured in an unpacked package", func(h *fakeHost) Settings {
			h.modules("/lib/modules/6.6.0", fakeDep, "")
			h.modules("/srv/deb/lib/modules/6.6.0", fakeDep, "")
			return Settings{Kernel: h.kernel("/srv/deb/boot/vmlinuz-6.6.0", "6.6.0")}
		}, "/srv/deb/boot/vmlinuz-6.6.0", OriginConfigured, "/srv/deb/lib/modules/6.6.0", nil},
		{"configured, all built in", func(h *fakeHost) Settings {
			return Settings{Kernel: h.write("/srv/vmlinux", fakeVMLinux())}
		}, "/srv/vmlinux", OriginConfigured, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newFakeHost(t)
			s := c.set(h)
			s.Root = h.root
			k, err := Find(s)
			if err != nil {
				t.Fatal(err)
			}
			wantMods := c.mods
			if wantMods != "" {
				wantMods = h.path(wantMods)
			}
			if k.Path != h.path(c.path) || k.Origin != c.origin || k.ModulesDir != wantMods {
				t.Errorf("found %+v", k)
			}
			if len(k.PassedOver) != len(c.passed) {
				t.Fatalf("passed over %q", k.PassedOver)
			}
			for i, p := range c.passed {
				if !strings.Contains(k.PassedOver[i], p) {
					t.Errorf("passed over %q, want a reason with %q", k.PassedOver[i], p)
				}
			}
		})
	}
}

func TestFindRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(h *fakeHost) Settings
		want []string
	}{
		{
			"nothing there", func(*fakeHost) Settings { return Settings{} },
			[]string{"there is none in /boot", distro.Install(distro.Kernel), "`kernel`", "/etc/husk/config.toml"},
		},
		{"only a cloud kernel", func(h *fakeHost) Settings {
			h.kernel("/boot/vmlinuz-6.1.0-10-cloud-amd64", "6.1.0-10-cloud-amd64")
			h.modules("/lib/modules/6.1.0-10-cloud-amd64", withoutLines(fakeDep, "9p"), "")
			return Settings{}
		}, []string{"vmlinuz-6.1.0-10-cloud-amd64", "no 9p", distro.Install(distro.Kernel)}},
		{
			"configured is not there", func(h *fakeHost) Settings { return Settings{Kernel: h.path("/no")} },
			[]string{"configured kernel", "/no", "not exist"},
		},
		{"configured is a directory", func(h *fakeHost) Settings { return Settings{Kernel: h.root} }, []string{"not a regular file"}},
		{"configured without depmod", func(h *fakeHost) Settings {
			h.write("/lib/modules/6.6.0/kernel/x.ko", nil)
			return Settings{Kernel: h.kernel("/srv/bzImage", "6.6.0")}
		}, []string{"modules.dep is missing", "depmod -b", "6.6.0"}},
		{"modules without kernel", func(h *fakeHost) Settings { return Settings{Modules: h.root} }, []string{"kernel is not set"}},
		{"husk's own is broken", func(h *fakeHost) Settings {
			h.distribution("6.1.0-9-amd64")
			h.write("/usr/lib/husk/vmlinuz", []byte("broken"))
			return Settings{}
		}, []string{"/usr/lib/husk/vmlinuz"}},
		{
			"release is a path", func(h *fakeHost) Settings { return Settings{Kernel: h.kernel("/srv/bzImage", "../../x")} },
			[]string{"release"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newFakeHost(t)
			s := c.set(h)
			s.Root = h.root
			k, err := Find(s)
			if err == nil {
				t.Fatalf("found %+v", k)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
		})
	}
	var nf *NotFoundError
	if _, err := Find(Settings{Root: t.TempDir()}); !errors.As(err, &nf) {
		t.Errorf("error %T", err)
	}
}

// Each release is newer than the one before it.
var releasesByAge = []string{
	"0-rescue-0123",
	"5.10.0-30-amd64",
	"6.1.0-9-rt-amd64",
	"6.1.0-9-amd64",
	"6.1.0-10-amd64",
	"6.1.0-56-cloud-amd64",
	"6.1.0-56-amd64",
	"6.2.0-rc3",
	"6.2.0-rc10",
	"6.2.0",
	"6.2.0-1-amd64",
	"6.2.1",
	"6.10",
	"6.10.1",
	"6.12.9+deb12-amd64",
	"6.12.95+deb12-amd64",
	"6.12.95-amd64",
	"6.13~rc2-amd64",
	"6.13-amd64",
}

func TestCompareReleases(t *testing.T) {
	for i, a := range releasesByAge {
		for j, b := range releasesByAge {
			got := cmp.Compare(compareReleases(a, b), 0)
			if want := cmp.Compare(i, j); got != want {
				t.Errorf("compare %s with %s: %d, want %d", a, b, got, want)
			}
		}
	}
}

// FuzzCompareReleases: the order is transitive, because sorting needs that.
func FuzzCompareReleases(f *testing.F) {
	f.Add("1xx9", "1y100", "1y9")
	f.Add("6.2.0-rc1", "6.2.0", "6.2.0~")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if compareReleases(a, b) != -compareReleases(b, a) {
			t.Fatalf("%q and %q: order depends on the side", a, b)
		}
		if compareReleases(a, b) <= 0 && compareReleases(b, c) <= 0 && compareReleases(a, c) > 0 {
			t.Fatalf("%q <= %q <= %q, but not first <= last", a, b, c)
		}
	})
}

// FuzzReadRelease reads the release from arbitrary bytes.
func FuzzReadRelease(f *testing.F) {
	f.Add([]byte("\x7fELF....Linux version 6.1.0-13-amd64 (debian@x) #1"))
	f.Add(append(make([]byte, 0x202), "HdrS\x0f\x02"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		release, err := readRelease(bytes.NewReader(b), int64(len(b)))
		if err == nil && len(release) > len(b) {
			t.Errorf("release %q of %d bytes", release, len(b))
		}
	})
}
