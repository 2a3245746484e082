//go:build integration

package integration

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hostile9PHusk builds a husk whose guest attacks the file server: its agent does not let the
// kernel mount the share, but drives the virtio-9p device itself.
var hostile9PHusk = sync.OnceValues(func() (string, error) {
	source, err := filepath.Abs("..")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(source, "build/hostile9p")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	agent, husk := filepath.Join(dir, "agent"), filepath.Join(dir, "husk")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for _, b := range []struct {
		overlaid, with string
		args           []string
	}{
		{"agent/share.go", filepath.Join(source, "integration/hostile9p/share.go"), []string{"-tags", "hostile9p", "-ldflags", "-s -w -X main.build=hostile9p", "-o", agent, "./agent"}},
		{"host/bootimage/embedded/agent", agent, []string{"-ldflags", "-X main.build=hostile9p", "-o", husk, "."}},
	} {
		overlay := filepath.Join(dir, "overlay.json")
		text, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(source, b.overlaid): b.with}})
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(overlay, text, 0o644); err != nil {
			return "", err
		}
		build := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-buildvcs=false", "-overlay", overlay}, b.args...)...)
		build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build a husk with a hostile 9p client: %w\n%s", err, out)
		}
	}
	return husk, nil
})

// hostile9P is a container whose guest attacks its file server, and the host's files around the
// share.
type hostile9P struct {
	*env
	t *testing.T
	// host has the volumes and, beside them, what the guest must not reach.
	host, outside, vol string
	bundle             string
	before             map[string]string
}

const (
	// canary is in what the guest must never see. The client looks for it in each reply.
	canary = "HUSK-CANARY"
	// hostileOverheadMiB bounds the vmm's memory beside its guest's, in MiB, whatever the guest
	// opens. Emulation needs 100 of them.
	hostileOverheadMiB = 512
	hostileMemoryMiB   = 256
	// maxHostileFDs and maxHostileDataMiB are the vmm's hard limits for descriptors and memory.
	// A guest needs longer than a test to reach them.
	maxHostileFDs     = 65536
	maxHostileDataMiB = hostileMemoryMiB + 2048
)

func newHostile9P(t *testing.T, options ...specOption) *hostile9P {
	t.Helper()
	needVM(t)
	if os.Getenv("HUSK_TESTPROG") != "" {
		t.Skip("there is no compiler in the KVM test bed")
	}
	husk, err := hostile9PHusk()
	if err != nil {
		t.Fatal(err)
	}
	e := newEnv(t)
	e.runtime = husk
	h := &hostile9P{env: e, t: t, host: e.mkdir("host")}
	h.outside, h.vol = filepath.Join(h.host, "outside"), filepath.Join(h.host, "vol")
	for path, text := range map[string]string{
		"outside/secret": canary, "outside/" + canary + "-name": canary, "outside/dir/secret": canary, "neighbour": canary,
		"ro/file": "read me\n", "ro/secret": "and me\n", "onefile": "one\n",
		"vol/swap/secret": "the guest's own\n",
	} {
		writeFile(t, filepath.Join(h.host, path), text)
	}
	for path, mode := range map[string]os.FileMode{"outside/secret": 0o600, "outside/dir": 0o700} {
		if err := os.Chmod(filepath.Join(h.host, path), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(h.outside, filepath.Join(h.vol, "swap.link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(h.vol, "host.zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	options = append(
		[]specOption{
			withBind(h.vol, "/vol", "rw"), withBind(filepath.Join(h.host, "ro"), "/ro", "ro"), withBind(filepath.Join(h.host, "onefile"), "/onefile", "rw"),
			func(s *specs.Spec) {
				s.Annotations = map[string]string{"org.huskvm.memory_mib": strconv.Itoa(hostileMemoryMiB)}
			},
		}, options...)
	h.bundle = e.bundle(options...)
	writeFile(t, filepath.Join(h.bundle, "neighbour"), canary)
	// The guest's kernel protects the registers of devices that have drivers, and several
	// devices are in one page.
	e.settings = e.otherSettings(map[string]string{"kernel_params": `"iomem=relaxed"`})
	return h
}

// run runs an attack for this many seconds and returns what the guest prints. Afterwards it
// checks that on the host only what the guest may write has changed.
func (h *hostile9P) run(attack string, seconds int, mayDie bool) string {
	h.t.Helper()
	code, out := h.runWhatever(attack, seconds)
	switch {
	case code == exitOfLostVM && mayDie:
		h.t.Log("the vmm has died, and with it this container alone")
	case code != 0:
		h.t.Errorf("the guest ended with %d", code)
	}
	return out
}

// runWhatever leaves it to the caller what the guest's exit code means.
func (h *hostile9P) runWhatever(attack string, seconds int) (code int, out string) {
	t := h.t
	t.Helper()
	spec := &specs.Spec{}
	mustJSON(t, readFile(t, filepath.Join(h.bundle, "config.json")), spec)
	spec.Process.Args = []string{"/bin/hostile9p", attack, h.outside, h.vol, strconv.Itoa(seconds), strconv.FormatInt(seed(t), 10)}
	writeSpec(t, h.bundle, spec)
	c := h.create(h.bundle)
	h.before = h.snapshot()
	swapped := h.swap()
	watched := h.watch()
	h.ok("start", c.id)
	limit := 2*testTimeout + 3*time.Duration(seconds)*time.Second
	code = -1
	select {
	case code = <-c.exit:
	case <-time.After(limit):
		t.Errorf("the guest goes on after %v", limit)
	}
	swapped()
	watched()
	out = c.stdout.String()
	t.Logf("exit code %d\n%s%s", code, out, c.stderr)
	for path, was := range h.before {
		if is, ok := h.snapshot()[path]; !ok || is != was {
			t.Errorf("%s is\n%s, was\n%s", path, is, was)
		}
	}
	for path := range h.snapshot() {
		if _, ok := h.before[path]; !ok {
			t.Errorf("%s is new", path)
		}
	}
	h.ok("delete", "--force", c.id)
	return code, out
}

const exitOfLostVM = 137

// seed returns HOSTILE9P_SEED, to repeat a failure, or a new seed for each run.
func seed(t *testing.T) int64 {
	t.Helper()
	if text := os.Getenv("HOSTILE9P_SEED"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return time.Now().UnixNano()
}

// snapshot describes everything that the guest must leave unchanged: the test's directory
// except the writable binds and husk's own state.
func (h *hostile9P) snapshot() map[string]string {
	h.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch path {
		case h.vol, h.root, filepath.Join(h.bundle, "rootfs"):
			return fs.SkipDir
		case filepath.Join(h.host, "onefile"), h.dir, h.host:
			return nil
		}
		if base := filepath.Base(path); filepath.Dir(path) == h.dir && (strings.HasPrefix(base, "log") || strings.HasPrefix(base, "pid")) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		text := fmt.Sprintf("%v %d:%d, %d links, %d bytes, changed %v", info.Mode(), st.Uid, st.Gid, st.Nlink, st.Size, st.Ctim)
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(", %x", sha256.Sum256(data))
		}
		all[path] = text
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

// swap exchanges a directory of the volume and a symbolic link out of it, again and again,
// until the result is called.
func (h *hostile9P) swap() func() {
	stop, ended := make(chan struct{}), make(chan int)
	dir, link := filepath.Join(h.vol, "swap"), filepath.Join(h.vol, "swap.link")
	go func() {
		// Not as fast as possible, because the guest needs time to run.
		tick := time.NewTicker(100 * time.Microsecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-stop:
				ended <- n
				return
			case <-tick.C:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				// The guest has removed one of them, so it is made again.
				_ = os.Mkdir(dir, 0o777)
				_ = os.Symlink(h.outside, link)
			}
			if n%64 == 0 {
				// Makes the secret again if the guest has removed it. O_NOFOLLOW, because this
				// may be the link.
				if fd, err := unix.Open(dir, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0); err == nil {
					if f, err := unix.Openat(fd, "secret", unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o666); err == nil {
						_ = unix.Close(f)
					}
					_ = unix.Close(fd)
				}
			}
		}
	}()
	return func() {
		close(stop)
		h.t.Logf("%d exchanges", <-ended)
	}
}

// watch samples the vmm's memory and descriptors until the result is called, which checks the
// maximum.
func (h *hostile9P) watch() func() {
	vmms := h.vmms()
	if len(vmms) != 1 {
		h.t.Fatalf("vmms: %v", vmms)
	}
	for which, most := range map[int]uint64{unix.RLIMIT_NOFILE: maxHostileFDs, unix.RLIMIT_DATA: maxHostileDataMiB << 20} {
		var limit unix.Rlimit
		if err := unix.Prlimit(vmms[0], which, nil, &limit); err != nil || limit.Max > most {
			h.t.Errorf("the vmm's limit %d is %d, %v", which, limit.Max, err)
		}
	}
	stop, ended := make(chan struct{}), make(chan [2]int)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		mib, fds := 0, 0
		for {
			open, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", vmms[0]))
			fds = max(fds, len(open))
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", vmms[0]))
			for line := range strings.Lines(string(status)) {
				if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
					kib, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB"))
					mib = max(mib, kib>>10)
				}
			}
			select {
			case <-tick.C:
			case <-stop:
				ended <- [2]int{mib, fds}
				return
			}
		}
	}()
	return func() {
		close(stop)
		most := <-ended
		h.t.Logf("the vmm had at most %d MiB and %d descriptors", most[0], most[1])
		if most[0] > hostileMemoryMiB+hostileOverheadMiB || most[1] > maxHostileFDs || most[0] == 0 || most[1] == 0 {
			h.t.Errorf("the vmm had %d MiB and %d descriptors", most[0], most[1])
		}
	}
}

// TestHostile9PClient: no message of a hostile guest to its file server reaches or changes
// anything outside of its files.
func TestHostile9PClient(t *testing.T) {
	t.Parallel()
	const seconds = 5 // of racing
	out := newHostile9P(t).run("all", seconds, false)
	if n := strings.Count(out, "held: "); n < 16 {
		t.Errorf("%d attacks were tried", n)
	}
}

// ownedBefore are files of the host's root that were in the volume before.
var ownedBefore = map[string]bool{
	"roots": true, "shut": true, "shut/secret": true, "host.zero": true,
	"swap": true, "swap/secret": true, "swap.link": true, "swap.link/secret": true,
}

// TestHostile9POwn: what a hostile guest can make in its files that would be useful on the
// host. With a user namespace nothing belongs to root, and there are no device nodes and no
// programs with capabilities that count outside. Without one there are only those that the
// container's capabilities allow.
func TestHostile9POwn(t *testing.T) {
	t.Parallel()
	for name, users := range map[string]bool{"user namespace": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var options []specOption
			if users {
				options = append(options, withUserNS(""))
			} else {
				options = append(options, func(s *specs.Spec) { s.Process.Capabilities = &specs.LinuxCapabilities{} })
			}
			h := newHostile9P(t, options...)
			rootfs := filepath.Join(h.bundle, "rootfs")
			if users {
				h.giveAway(h.vol, rootfs)
				h.open(h.bundle)
			}
			before := h.contents(rootfs)
			writeFile(t, filepath.Join(h.vol, "roots"), canary)
			writeFile(t, filepath.Join(h.vol, "shut/secret"), canary)
			for _, path := range []string{"roots", "shut"} {
				if err := os.Chmod(filepath.Join(h.vol, path), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			rootsBefore := describeFile(t, filepath.Join(h.vol, "roots"))
			if users {
				h.run("own", 1, false)
				if is := describeFile(t, filepath.Join(h.vol, "roots")); is != rootsBefore {
					t.Errorf("root's file in the volume is\n%s, was\n%s", is, rootsBefore)
				}
			} else {
				// The guest gets files of root, which are its own.
				h.runWhatever("own", 1)
			}
			made := 0
			for dir, was := range map[string]map[string]syscall.Stat_t{h.vol: nil, rootfs: before} {
				for path, st := range h.contents(dir) {
					if _, old := was[path]; old || ownedBefore[path] {
						continue
					}
					made++
					if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFBLK || kind == unix.S_IFCHR {
						t.Errorf("the guest has made the node %s of device %d", path, st.Rdev)
					}
					// The vmm's own ids, which belong to nobody else.
					const first = 0xc0000000
					nobodys := st.Uid >= first && st.Gid >= first
					if mapped := st.Uid >= outerUID && st.Uid < outerUID+65536 && st.Gid >= outerGID && st.Gid < outerGID+65536; users && !mapped && !nobodys {
						t.Errorf("the guest has made %s, mode %o, of %d:%d", path, st.Mode, st.Uid, st.Gid)
					}
					value := make([]byte, 64)
					if n, err := unix.Lgetxattr(filepath.Join(dir, path), "security.capability", value); err == nil {
						t.Errorf("%s has capabilities %x", path, value[:n])
					}
				}
			}
			if made == 0 {
				t.Error("the guest has made nothing at all")
			}
		})
	}
}

// giveAway makes the container's root the owner of directories with their content.
func (h *hostile9P) giveAway(dirs ...string) {
	for _, dir := range dirs {
		for path := range h.contents(dir) {
			if ownedBefore[path] {
				continue
			}
			if err := os.Lchown(filepath.Join(dir, path), outerUID, outerGID); err != nil {
				h.t.Fatal(err)
			}
		}
	}
}

// contents describes a directory and its content, by relative path.
func (h *hostile9P) contents(dir string) map[string]syscall.Stat_t {
	h.t.Helper()
	all := map[string]syscall.Stat_t{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		all[rel] = *info.Sys().(*syscall.Stat_t)
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

func describeFile(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%v %d:%d, %d links, changed %v, %x", info.Mode(), st.Uid, st.Gid, st.Nlink, st.Ctim, sha256.Sum256([]byte(readFile(t, path))))
}

// TestHostile9PFuzz runs for HOSTILE9P_FUZZ seconds; by hand use 600.
func TestHostile9PFuzz(t *testing.T) {
	t.Parallel()
	seconds := 8
	if text := os.Getenv("HOSTILE9P_FUZZ"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		seconds = n
	}
	newHostile9P(t).run("fuzz", seconds, true)
}

// TestHostile9PExhaust: what a guest opens and never closes uses a bounded amount of the host's
// memory and descriptors.
func TestHostile9PExhaust(t *testing.T) {
	t.Parallel()
	const seconds = 20
	newHostile9P(t).run("exhaust", seconds, true)
}
