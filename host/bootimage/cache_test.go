package bootimage

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestPrepareRace(t *testing.T) {
	p := newPreparer(t)
	images := make([]*Image, 8)
	var wg sync.WaitGroup
	for i := range images {
		wg.Go(func() {
			img, err := prepare(context.Background(), p.settings, p.agent, nil)
			if err != nil {
				t.Error(err)
			}
			images[i] = img
		})
	}
	wg.Wait()
	for _, img := range images {
		if img == nil || *img != *images[0] {
			t.Fatalf("images differ: %+v, %+v", images[0], img)
		}
	}
	p.check(images[0])
	if p.made.Load() != 1 {
		t.Errorf("made %d times", p.made.Load())
	}
}

const raceEnv = "HUSK_TEST_PREPARE_ROOT"

// TestPrepareRaceOfProcesses runs this test binary several times at once, as engines run husk.
// One of the processes is killed while it works.
func TestPrepareRaceOfProcesses(t *testing.T) {
	if root := os.Getenv(raceEnv); root != "" {
		s := Settings{Root: root, CacheDir: filepath.Join(root, "var/cache/husk")}
		img, err := prepare(context.Background(), s, func() ([]byte, error) {
			if os.Getenv("HUSK_TEST_DIE") != "" {
				_ = os.WriteFile(filepath.Join(s.CacheDir, tempPrefix+"half"), []byte("half"), 0o600)
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
			_, _ = os.Stdout.WriteString("MADE\n")
			return fakeAgent, nil
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString("DIGEST " + img.Digest + "\n")
		return
	}
	p := newPreparer(t)
	run := func(env ...string) *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestPrepareRaceOfProcesses$")
		cmd.Env = append(append(os.Environ(), raceEnv+"="+p.root), env...)
		return cmd
	}
	if err := run("HUSK_TEST_DIE=1").Run(); err == nil {
		t.Fatal("the process that was to die did not")
	}
	outs := make([]string, 4)
	var wg sync.WaitGroup
	for i := range outs {
		wg.Go(func() {
			b, err := run().CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, b)
			}
			outs[i] = string(b)
		})
	}
	wg.Wait()
	all := strings.Join(outs, "")
	img := p.prepare()
	p.check(img)
	if strings.Count(all, "MADE") != 1 || strings.Count(all, "DIGEST "+img.Digest) != len(outs) {
		t.Errorf("output:\n%s", all)
	}
	if left, _ := filepath.Glob(p.settings.CacheDir + "/" + tempPrefix + "*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestPrune(t *testing.T) {
	p := newPreparer(t)
	img := p.prepare()
	c := &cache{p.settings.CacheDir}
	for _, name := range []string{"vmlinux-old", "vmlinux-old.sha256", "initramfs-old", "index-old.json", "tmp-x", "vmlinux-new", "admins-own"} {
		p.write("/var/cache/husk/"+name, []byte("{}"))
	}
	now := time.Now()
	old := now.Add(-dropAfter - time.Hour)
	files, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files { // files in use are old as well: age alone is no reason to remove one
		if f.Name() != "vmlinux-new" && (!strings.HasPrefix(f.Name(), indexPrefix) || f.Name() == "index-old.json") {
			if err := os.Chtimes(c.path(f.Name()), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.prune(now)
	for name, want := range map[string]bool{
		"vmlinux-old": false, "vmlinux-old.sha256": false, "initramfs-old": false, "index-old.json": false, "tmp-x": false,
		"vmlinux-new": true, "admins-own": true, lockName: true,
		filepath.Base(img.Kernel): true, filepath.Base(img.Kernel) + sumSuffix: true, filepath.Base(img.Initrd): true,
	} {
		if _, err := os.Stat(c.path(name)); (err == nil) != want {
			t.Errorf("%s: %v, want it kept: %v", name, err, want)
		}
	}
}

// TestPrepareTouchesIndex: an index that is used is not pruned.
func TestPrepareTouchesIndex(t *testing.T) {
	p := newPreparer(t)
	p.prepare()
	files, _ := filepath.Glob(p.settings.CacheDir + "/index-*")
	old := time.Now().Add(-touchAfter - time.Hour)
	if err := os.Chtimes(files[0], old, old); err != nil {
		t.Fatal(err)
	}
	p.prepare()
	if st, err := os.Stat(files[0]); err != nil || time.Since(st.ModTime()) > time.Hour {
		t.Errorf("index of %v, %v", st.ModTime(), err)
	}
	if p.made.Load() != 1 {
		t.Errorf("made %d times", p.made.Load())
	}
}
