package bootimage

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
)

func names(mods []module) []string {
	var s []string
	for _, m := range mods {
		s = append(s, m.Name)
	}
	return s
}

func TestResolveModules(t *testing.T) {
	for _, c := range []struct {
		name, dep, builtin string
		want               []string
		wantErr            string
	}{
		{"modules", fakeDep, "", []string{
			"virtio_ring", "virtio", "virtio_mmio", "virtio_console",
			"9pnet", "9pnet_virtio", "netfs", "fscache", "9p", "virtio_rng",
			"tunnel", "tun", // on demand, after all others
		}, ""},
		{
			"partly built in", fakeDep, "kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio_ring.ko\n" +
				"kernel/drivers/virtio/virtio_mmio.ko\nkernel/drivers/char/hw_random/virtio-rng.ko\n",
			[]string{"virtio_console", "9pnet", "9pnet_virtio", "netfs", "fscache", "9p", "tunnel", "tun"},
			"",
		},
		{"required is missing", withoutLines(fakeDep, "9pnet_virtio"), "", nil, "the kernel has no 9pnet_virtio"},
		{"required is missing", withoutLines(fakeDep, "virtio_console"), "", nil, "the kernel has no virtio_console"},
		{"dependency is not listed", withoutLines(fakeDep, "netfs.ko:\n"), "", nil, "netfs is depended on but not listed: run"},
		{"circle", "a/9p.ko: a/x.ko\na/x.ko: a/9p.ko\n" + fakeDep, "", nil, "depends on itself: run"},
		{"no colon", "kernel/x.ko\n", "", nil, "without a colon"},
		{"leaves the directory", "../x.ko:\n", "", nil, "not below"},
		{"absolute", "/x.ko:\n", "", nil, "not below"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newFakeHost(t)
			if c.wantErr == "" {
				h.modules("/m", c.dep, c.builtin)
			} else {
				h.write("/m/modules.dep", []byte(c.dep))
			}
			mods, err := resolveModules(h.path("/m"), "6.1.0", witnesses{})
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Errorf("error %v, want one with %q", err, c.wantErr)
				}
				return
			}
			if err != nil || !slices.Equal(names(mods), c.want) {
				t.Errorf("modules %v, %v; want %v", names(mods), err, c.want)
			}
		})
	}
}

func TestStaleModulesDep(t *testing.T) {
	h := newFakeHost(t)
	h.modules("/lib/modules/6.1.0", fakeDep, "")
	if err := os.Remove(h.path("/lib/modules/6.1.0/kernel/fs/netfs/netfs.ko")); err != nil {
		t.Fatal(err)
	}
	_, err := resolveModules(h.path("/lib/modules/6.1.0"), "6.1.0", witnesses{})
	if err == nil || !strings.Contains(err.Error(), "netfs.ko is missing") || !strings.Contains(err.Error(), "depmod -b "+h.root+" 6.1.0") {
		t.Errorf("error %v", err)
	}
}

func TestDepmodCommand(t *testing.T) {
	for dir, want := range map[string]string{
		"/lib/modules/6.1.0":       `"depmod 6.1.0"`,
		"/srv/x/lib/modules/6.1.0": `"depmod -b /srv/x 6.1.0"`,
	} {
		if got := depmodCommand(dir, "6.1.0"); got != want {
			t.Errorf("%s: %s, want %s", dir, got, want)
		}
	}
}

func TestModuleName(t *testing.T) {
	for file, want := range map[string]string{
		"kernel/drivers/char/hw_random/virtio-rng.ko": "virtio_rng",
		"9p.ko.xz": "9p", "a/b.ko.zst": "b", "a/b.ko.gz": "b",
		"a/b": "", "a/b.kox": "", "a/.ko": "", "": "", "../b.ko": "", "/b.ko": "", "a/../../b.ko": "",
	} {
		if got, err := moduleName(file); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", file, got, err, want)
		}
	}
}

func TestReadModuleRefuses(t *testing.T) {
	h := newFakeHost(t)
	for name, b := range map[string][]byte{
		"empty":         {},
		"no ELF":        []byte("hello, world"),
		"packed no ELF": packGzip(t, []byte("hello, world")),
		"truncated":     packXZ(t, fakeModule("x"))[:40],
		"bomb":          packZstd(t, make([]byte, maxModule+1)),
	} {
		if _, err := readModule(module{Name: "x", Path: h.write("/"+strings.ReplaceAll(name, " ", "_"), b)}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestInitramfs(t *testing.T) {
	h := newFakeHost(t)
	h.modules("/m", fakeDep+"kernel/fs/fuse/fuse.ko:\nkernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko\n", "")
	h.write("/m/modules.alias", []byte("# of modules\nalias char-major-10-200 tun\nalias devname:net/tun tun\nalias fs-9p 9p\nalias pci:* hardware\n"))
	mods, err := resolveModules(h.path("/m"), "6.1.0", witnesses{})
	if err != nil {
		t.Fatal(err)
	}
	var archive, again bytes.Buffer
	agent := []byte("\x7fELF agent")
	for _, w := range []*bytes.Buffer{&archive, &again} {
		if err := writeInitramfs(w, agent, mods); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archive.Bytes(), again.Bytes()) {
		t.Error("two archives of the same differ")
	}
	// The library's reader ignores device numbers.
	for _, dev := range []string{"0000000500000001", "0000000100000003"} {
		if !bytes.Contains(archive.Bytes(), []byte(dev)) {
			t.Errorf("no device %s", dev)
		}
	}
	files := map[string]string{}
	seen := map[string]bool{}
	r := cpio.NewReader(&archive)
	for {
		hd, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if dir := filepath.Dir(hd.Name); dir != "." && !seen[dir] {
			t.Errorf("%s comes before its directory", hd.Name)
		}
		seen[hd.Name] = true
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[hd.Name+" "+hd.Mode.String()] = string(b) + hd.Linkname
	}
	want := map[string]string{
		"init 0100755": string(agent), "dev/console 020600": "", "dev/null 020666": "",
		"dev 040755": "", "proc 040755": "", "sys 040755": "", "run 040755": "", "tmp 041777": "", "etc 040755": "",
	}
	var list strings.Builder
	for _, m := range mods {
		if len(m.For) == 0 {
			list.WriteString("/lib/modules/" + m.Name + ".ko\n")
		}
		name := "lib/modules/" + m.Name + ".ko 0100644"
		if len(m.For) == 0 {
			want[name] = string(fakeModule(m.Name))
		} else if got := gunzip(t, files["lib/modules/"+m.Name+".ko.gz 0100644"]); got != string(fakeModule(m.Name)) {
			t.Errorf("%s: unpacked %q", m.Name, got)
		}
	}
	want["lib/modules/load 0100644"] = list.String()
	want["lib/modules/demand 0100644"] = "tun /lib/modules/tunnel.ko.gz\ntun /lib/modules/tun.ko.gz\n"
	want["lib/modules/aliases 0100644"] = "char-major-10-200 tun\ndevname:net/tun tun\n"
	want["lib/modules/modprobe 0120777"] = "/init"
	for name, content := range want {
		if got, ok := files[name]; !ok || got != content {
			t.Errorf("%s: %q (there: %v), want %q", name, got, ok, content)
		}
	}
}

func gunzip(t *testing.T, packed string) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestParseAliases(t *testing.T) {
	got, err := parseAliases(strings.NewReader("# c\n\nalias block-major-7-* loop\nalias a nf-x\nalias b nf_x\n"))
	want := map[string][]string{"loop": {"block-major-7-*"}, "nf_x": {"a", "b"}}
	if err != nil || !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"alias a\n", "option a b\n", "alias a b c\n"} {
		if _, err := parseAliases(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestIsOnDemand(t *testing.T) {
	for file, want := range map[string]bool{
		"kernel/net/netfilter/nf_tables.ko": true, "kernel/net/netfilter/ipvs/ip_vs.ko.xz": true,
		"kernel/drivers/net/tun.ko": true, "kernel/drivers/net/dummy.ko.zst": true,
		"kernel/drivers/net/ethernet/intel/e1000.ko": false, "kernel/fs/xfs/xfs.ko": false, "updates/tun.ko": false,
	} {
		if isOnDemand(file) != want {
			t.Errorf("%s: %v", file, !want)
		}
	}
}

func FuzzModulesDep(f *testing.F) {
	f.Add([]byte(fakeDep))
	f.Add([]byte("a.ko: b.ko\nb.ko: a.ko\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parseModulesDep(bytes.NewReader(b))
		if err != nil {
			return
		}
		r := &resolver{entries: entries, state: map[string]int{}}
		for name, e := range entries {
			if !filepath.IsLocal(e.path) || strings.ContainsAny(name, "/\n") {
				t.Fatalf("%q: %q", name, e.path)
			}
			if r.add(name) != nil {
				return
			}
		}
		at := map[string]int{}
		for i, name := range r.order {
			at[name] = i
		}
		for _, name := range r.order {
			for _, d := range entries[name].deps {
				if at[d] >= at[name] {
					t.Fatalf("%s is loaded before %s, which it needs", name, d)
				}
			}
		}
	})
}

func FuzzAliases(f *testing.F) {
	f.Add([]byte("# c\nalias block-major-7-* loop\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		aliases, err := parseAliases(bytes.NewReader(b))
		if err != nil {
			return
		}
		// Each becomes a field of a line whose fields are separated by a space.
		for name, patterns := range aliases {
			for _, part := range append([]string{name}, patterns...) {
				if strings.ContainsAny(part, " \n") || part == "" {
					t.Fatalf("%q", part)
				}
			}
		}
	})
}
