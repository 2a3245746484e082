package bootimage

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/creack/pty"
)

var fakeAgent = []byte("\x7fELF an agent")

// preparer prepares images of one host, and counts how often they were made, because only then
// the agent is asked for.
type preparer struct {
	*fakeHost
	settings Settings
	made     atomic.Int32
}

func newPreparer(t testing.TB) *preparer {
	h := newFakeHost(t)
	h.distribution(fakeRelease)
	p := &preparer{fakeHost: h, settings: Settings{Root: h.root, CacheDir: h.path("/var/cache/husk")}}
	p.settle()
	return p
}

func (p *preparer) agent() ([]byte, error) {
	p.made.Add(1)
	return fakeAgent, nil
}

func (p *preparer) prepare() *Image {
	p.t.Helper()
	img, err := prepare(context.Background(), p.settings, p.agent, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return img
}

// settle waits until a change would be noticed. No event tells that.
func (p *preparer) settle() { <-time.After(racy + 20*time.Millisecond) }

// check checks the files of img.
func (p *preparer) check(img *Image) {
	p.t.Helper()
	kernel, err := os.ReadFile(img.Kernel)
	if err != nil || !bytes.Equal(kernel, fakeVMLinux()) {
		p.t.Errorf("kernel %s is damaged: %v", img.Kernel, err)
	}
	initrd, err := os.ReadFile(img.Initrd)
	if err != nil || !bytes.Contains(initrd, fakeAgent) || !bytes.Contains(initrd, []byte("/lib/modules/9p.ko\n")) {
		p.t.Errorf("initramfs %s is damaged: %v", img.Initrd, err)
	}
	if img.Release != fakeRelease || len(img.Digest) != 64 {
		p.t.Errorf("image %+v", img)
	}
}

func TestPrepareTwice(t *testing.T) {
	p := newPreparer(t)
	first := p.prepare()
	p.check(first)
	second := p.prepare()
	if *first != *second || p.made.Load() != 1 {
		t.Errorf("first %+v, second %+v, made %d times", first, second, p.made.Load())
	}
	st, err := os.Stat(p.settings.CacheDir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("cache directory: %v, %v", st.Mode(), err)
	}
	files, err := os.ReadDir(p.settings.CacheDir)
	if err != nil || len(files) != 5 {
		t.Errorf("cache holds %v, %v", files, err)
	}
}

// TestPrepareSeesChanges: a change of anything that an image was made of is noticed, even if
// size and modification time stay the same.
func TestPrepareSeesChanges(t *testing.T) {
	rewrite := func(p *preparer, path string, b []byte) {
		path = p.path(path)
		old, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = f.Write(b); err == nil {
			err = f.Close()
		}
		if err == nil {
			err = os.Chtimes(path, old.ModTime(), old.ModTime())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const dir = "/lib/modules/" + fakeRelease
	for _, c := range []struct {
		name                      string
		change                    func(p *preparer)
		kernel, initrd, sameImage bool // which parts must differ; sameImage: none
	}{
		{"nothing", func(*preparer) {}, false, false, true},
		{"kernel in place", func(p *preparer) {
			img := fakeBzImage(fakeRelease+" (x)", packGzip(t, fakeVMLinux()))
			img[len(img)-1] = 1
			rewrite(p, "/boot/vmlinuz-"+fakeRelease, img)
		}, true, false, false},
		{"module in place", func(p *preparer) {
			rewrite(p, dir+"/kernel/fs/9p/9p.ko", fakeModule("9x"))
		}, false, true, false},
		{"modules.dep", func(p *preparer) {
			p.write(dir+"/modules.dep", []byte(withoutLines(fakeDep, "virtio-rng")))
		}, false, true, false},
		{"modules.builtin", func(p *preparer) {
			p.write(dir+"/modules.builtin", []byte("kernel/fs/netfs/netfs.ko\n"))
		}, false, true, false},
		{"a newer kernel", func(p *preparer) {
			p.distribution("6.9.0")
		}, true, false, false},
		{"husk's own kernel", func(p *preparer) {
			p.write("/usr/lib/husk/vmlinuz", fakeBzImage(fakeRelease+" (z)", packGzip(t, fakeVMLinux())))
			p.modules("/usr/lib/husk/modules", fakeDep, "")
		}, true, false, false},
		{"another file in /boot", func(p *preparer) { p.write("/boot/initrd.img", nil) }, false, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPreparer(t)
			first := p.prepare()
			c.change(p)
			second := p.prepare()
			if (first.Kernel != second.Kernel) != c.kernel {
				t.Errorf("kernel was %s, is %s", first.Kernel, second.Kernel)
			}
			if (first.Initrd != second.Initrd) != c.initrd {
				t.Errorf("initramfs was %s, is %s", first.Initrd, second.Initrd)
			}
			if (first.Digest == second.Digest) != c.sameImage {
				t.Errorf("digest was %s, is %s", first.Digest, second.Digest)
			}
			if _, err := os.Stat(first.Kernel); err != nil {
				t.Errorf("what may be booting just now is gone: %v", err)
			}
		})
	}
}

// TestPrepareDistrustsFreshFiles: a second change within the same clock tick is noticed
// although an image was prepared between the two.
func TestPrepareDistrustsFreshFiles(t *testing.T) {
	p := newPreparer(t)
	p.write("/boot/vmlinuz-"+fakeRelease, fakeBzImage(fakeRelease+" (y)", packGzip(t, fakeVMLinux())))
	usual := racy
	racy = time.Hour // a busy machine may need longer than the usual value to reach the next line
	t.Cleanup(func() { racy = usual })
	p.prepare()
	p.prepare()
	if p.made.Load() != 2 {
		t.Errorf("made %d times", p.made.Load())
	}
	racy = usual
	p.settle()
	p.prepare()
	p.check(p.prepare())
	if p.made.Load() != 3 {
		t.Errorf("made %d times", p.made.Load())
	}
}

func TestPrepareRepairsDamage(t *testing.T) {
	flip := func(path string) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte{0xff}, 200)
		return err
	}
	for _, c := range []struct {
		name   string
		damage func(img *Image, dir string) error
	}{
		{"kernel cut", func(img *Image, _ string) error { return os.Truncate(img.Kernel, 100) }},
		{"kernel flipped", func(img *Image, _ string) error { return flip(img.Kernel) }},
		{"kernel gone", func(img *Image, _ string) error { return os.Remove(img.Kernel) }},
		{"checksum gone and kernel flipped", func(img *Image, _ string) error {
			return errors.Join(flip(img.Kernel), os.Remove(img.Kernel+sumSuffix))
		}},
		{"initramfs cut", func(img *Image, _ string) error { return os.Truncate(img.Initrd, 100) }},
		{"initramfs flipped", func(img *Image, _ string) error { return flip(img.Initrd) }},
		{"initramfs gone", func(img *Image, _ string) error { return os.Remove(img.Initrd) }},
		{"everything gone", func(_ *Image, dir string) error {
			files, err := filepath.Glob(dir + "/*")
			for _, f := range files {
				err = errors.Join(err, os.Remove(f))
			}
			return err
		}},
		{"index cut", func(_ *Image, dir string) error {
			files, _ := filepath.Glob(dir + "/index-*")
			return os.Truncate(files[0], 100)
		}},
		{"index empty", func(_ *Image, dir string) error {
			files, _ := filepath.Glob(dir + "/index-*")
			return os.WriteFile(files[0], []byte("{}"), 0o600)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPreparer(t)
			first := p.prepare()
			if err := c.damage(first, p.settings.CacheDir); err != nil {
				t.Fatal(err)
			}
			second := p.prepare()
			p.check(second)
			if *second != *first || p.made.Load() != 2 {
				t.Errorf("first %+v, second %+v, made %d times", first, second, p.made.Load())
			}
			p.prepare()
			if p.made.Load() != 2 {
				t.Error("made once more although repaired")
			}
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(p *preparer)
		want string
	}{
		{"writable cache", func(p *preparer) {
			p.settings.CacheDir = p.t.TempDir()
			if err := os.Chmod(p.settings.CacheDir, 0o777); err != nil {
				p.t.Fatal(err)
			}
		}, "others may write"},
		{"cache is a file", func(p *preparer) { p.settings.CacheDir = p.write("/f", nil) }, "not a directory"},
		{"no cache", func(p *preparer) { p.settings.CacheDir = "" }, "no cache directory"},
		{"no PVH", func(p *preparer) {
			elf := fakeVMLinux()
			elf[64+56+8] = 0
			p.write("/boot/vmlinuz-"+fakeRelease, fakeBzImage(fakeRelease+" (x)", packGzip(t, elf)))
		}, "CONFIG_PVH"},
		{"cut kernel", func(p *preparer) {
			b := fakeBzImage(fakeRelease+" (x)", packGzip(t, fakeVMLinux()))
			p.settings.Kernel = p.write("/boot/vmlinuz-"+fakeRelease, b[:len(b)-1000])
		}, "truncated"},
		{"no modules and not built in", func(p *preparer) {
			p.settings.Kernel = p.write("/srv/vmlinux", bytes.ReplaceAll(
				bytes.ReplaceAll(fakeVMLinux(), []byte("virtio-mmio"), []byte("xxxxxxxxxxx")), []byte(fakeRelease), []byte("6.6.6.6.6.6.6")))
		}, "virtio_mmio is not built in"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPreparer(t)
			c.set(p)
			img, err := prepare(context.Background(), p.settings, p.agent, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, error %v, want one with %q", img, err, c.want)
			}
			left, _ := filepath.Glob(p.path("/var/cache/husk/*"))
			for _, f := range left {
				if filepath.Base(f) != lockName {
					t.Errorf("left behind: %s", f)
				}
			}
		})
	}
}

func TestPrepareForeignCache(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give a directory away")
	}
	p := newPreparer(t)
	p.settings.CacheDir = t.TempDir()
	if err := os.Chown(p.settings.CacheDir, 1234, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := prepare(context.Background(), p.settings, p.agent, nil); err == nil || !strings.Contains(err.Error(), "belongs to uid 1234") {
		t.Errorf("error %v", err)
	}
}

func TestPrepareELF(t *testing.T) {
	p := newPreparer(t)
	p.settings.Kernel = p.write("/srv/vmlinux", fakeVMLinux())
	p.settle()
	img := p.prepare()
	p.check(img)
	if img.Kernel == p.settings.Kernel {
		t.Error("the kernel is not a copy")
	}
}

func TestPrepareWithoutAgent(t *testing.T) {
	p := newPreparer(t)
	want := errors.New("no agent")
	_, err := prepare(context.Background(), p.settings, func() ([]byte, error) { return nil, want }, nil)
	if !errors.Is(err, want) {
		t.Errorf("error %v", err)
	}
}

// TestAgent: Agent returns the program that make has put there, or an error that says how to
// get one.
func TestAgent(t *testing.T) {
	b, err := Agent()
	if _, serr := os.Stat("embedded/agent"); serr == nil {
		if err != nil || !bytes.HasPrefix(b, elfMagic) {
			t.Errorf("agent of %d bytes, %v", len(b), err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), "make") {
		t.Errorf("error %v", err)
	}
}

func TestPrepareCancelled(t *testing.T) {
	p := newPreparer(t)
	c, err := openCache(p.settings.CacheDir)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := c.lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := prepare(ctx, p.settings, p.agent, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v while another holds the lock", err)
	}
	unlock()
	if _, err := prepare(ctx, p.settings, p.agent, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v with an ended context", err)
	}
	p.check(p.prepare()) // the call that gave up waiting must not hold the lock
}

func TestProgress(t *testing.T) {
	draw := func(w io.Writer) {
		p := newPreparer(t)
		if _, err := prepare(context.Background(), p.settings, p.agent, w); err != nil {
			t.Fatal(err)
		}
	}
	var buf bytes.Buffer
	draw(&buf)
	if buf.Len() != 0 {
		t.Errorf("drawn on what is no file: %q", buf.String())
	}
	draw((*os.File)(nil))

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	draw(w)
	w.Close()
	if b, _ := io.ReadAll(r); len(b) != 0 {
		t.Errorf("drawn on a pipe: %q", b)
	}

	terminal, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	draw(tty)
	tty.Close()
	b := make([]byte, 4096)
	n, _ := terminal.Read(b)
	if !strings.Contains(string(b[:n]), "unpacking kernel") {
		t.Errorf("on a terminal: %q", b[:n])
	}
}

func BenchmarkPrepareWarm(b *testing.B) {
	p := newPreparer(b)
	p.prepare()
	for b.Loop() {
		p.prepare()
	}
	if p.made.Load() != 1 {
		b.Errorf("made %d times", p.made.Load())
	}
}
