//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Faults of the host: something that husk needs is used up or no longer exists. The results are
// checked as in faults_test.go.

// someFaults returns n of them for the suite, or all of them if FAULTS asks for more.
func someFaults[T any](all []T, n int) []T {
	if os.Getenv("FAULTS") == "" {
		return pick(all, n)
	}
	return all
}

// smallDisk mounts a filesystem of this size. The test unmounts it by remove.
func (e *env) smallDisk(dir string, size string) (remove func()) {
	e.t.Helper()
	if err := os.MkdirAll(dir, 0o711); err != nil {
		e.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=711,size="+size); err != nil {
		e.t.Fatal(err)
	}
	return func() {
		e.t.Helper()
		if err := unix.Unmount(dir, 0); err != nil {
			e.t.Errorf("unmount %s: %v", dir, err)
		}
	}
}

// fill writes a file until the disk is full. free removes it.
func (e *env) fill(dir string) (free func()) {
	e.t.Helper()
	path := filepath.Join(dir, "full")
	f, err := os.Create(path)
	if err != nil {
		e.t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		e.t.Fatal(err)
	}
	return func() {
		e.t.Helper()
		if err := os.Remove(path); err != nil {
			e.t.Fatal(err)
		}
	}
}

// failsCleanly checks that a create has failed and has left nothing of its container.
func (e *env) failsCleanly(id string, r *result) {
	e.t.Helper()
	if r.code == 0 {
		e.t.Errorf("%s succeeded", r.what)
	}
	if strings.Count(strings.TrimSpace(r.stderr), "\n") != 0 || strings.TrimSpace(r.stderr) == "" {
		e.t.Errorf("%s: not one line: %q", r.what, r.stderr)
	}
	e.do("state", id).fails(1, missing)
}

// TestFaultFullState: the disk of the state directory is full while verbs run.
func TestFaultFullState(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	remove := e.smallDisk(e.root, "256k")
	s := &subject{e: e, id: e.id(), bundle: e.bundle(withScript(ticks))}
	free := e.fill(e.root)
	e.failsCleanly(s.id, e.do(s.createArgs()...))
	free()
	p := e.start(call{dir: e.dir}, s.createArgs()...)
	if code := p.code(); code != 0 {
		t.Fatalf("%s: exit code %d: %s", p, code, p.log())
	}
	s.out = p.stdout
	s.reap()
	for _, verb := range []string{"start", "pause", "resume"} {
		before := e.state(s.id).Status
		free := e.fill(e.root)
		code := e.do(verb, s.id).code
		s.tellsTheTruth(t, false)
		if after := e.state(s.id).Status; (after != before) != (code == 0) {
			t.Errorf("%s: exit code %d, and from %s it became %s", verb, code, before, after)
		}
		free()
		if code != 0 {
			e.ok(verb, s.id)
		}
	}
	free = e.fill(e.root)
	if r := e.do("exec", s.id, "echo", "in"); r.stdout != "in\n" {
		t.Errorf("exec: exit code %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	s.goes(t, &faultRow{})
	free()
	remove()
}

// TestFaultFullCache: the disk of the cache is full, before the kernel is unpacked and when a
// template is made, without which a container boots.
func TestFaultFullCache(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	for _, c := range []struct {
		size  string
		works bool
	}{{"1m", false}, {"110m", true}} {
		cache := e.path("cache")
		remove := e.smallDisk(cache, c.size)
		if err := os.Chmod(cache, 0o700); err != nil {
			t.Fatal(err)
		}
		if c.works {
			copyKernel(t, cache)
		}
		id := e.id()
		r := e.with(e.otherSettings(map[string]string{"cache": fmt.Sprintf("%q", cache)}),
			"run", "--bundle", e.bundle(withScript("echo up")), id)
		if !c.works {
			e.failsCleanly(id, r)
		} else if r.code != 0 || r.stdout != "up\n" {
			t.Errorf("cache of %s: exit code %d, %q, %q", c.size, r.code, r.stdout, r.stderr)
		}
		if left := halfMade(t, cache); len(left) > 0 {
			t.Errorf("cache of %s: left: %v", c.size, left)
		}
		remove()
	}
}

// copyKernel copies the unpacked kernel and initramfs of the tests' cache. Without the index
// they are made again.
func copyKernel(t *testing.T, cache string) {
	t.Helper()
	for _, pattern := range []string{"vmlinux*", "initramfs*"} {
		files, _ := filepath.Glob(filepath.Join(os.Getenv("HUSK_CACHE"), pattern))
		for _, file := range files {
			if err := copyFile(file, filepath.Join(cache, filepath.Base(file)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// halfMade lists files in a cache that a finished call should not have left.
func halfMade(t *testing.T, cache string) []string {
	t.Helper()
	var left []string
	for _, pattern := range []string{"tmp-*", "templates/.making-*", "templates/.gone-*"} {
		found, err := filepath.Glob(filepath.Join(cache, pattern))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}

// TestFaultFewDescriptorsOfCLI: if the cli may open only few files, a create works, or fails
// and leaves nothing.
func TestFaultFewDescriptorsOfCLI(t *testing.T) {
	needVM(t)
	t.Parallel()
	limits := []int{4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40}
	for _, n := range someFaults(limits, 4) {
		e := newEnv(t)
		s := &subject{e: e, id: e.id(), bundle: e.bundle(withScript(ticks))}
		p := e.start(call{dir: e.dir, via: []string{"prlimit", fmt.Sprintf("--nofile=%d:%d", n, n)}}, s.createArgs()...)
		s.out = p.stdout
		if p.code() == 0 {
			s.reap()
			s.tellsTheTruth(t, false)
			s.goes(t, &faultRow{})
		} else {
			e.do("state", s.id).fails(1, missing)
		}
	}
}

// TestFaultNoDescriptorsOfSupervisor: if the supervisor cannot open files, verbs fail, kill
// works, and later all verbs work again.
func TestFaultNoDescriptorsOfSupervisor(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withScript(ticks)))
	s := &subject{e: e, id: c.id, out: c.stdout, pid: c.pid}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.pid))
	if err != nil {
		t.Fatal(err)
	}
	var before unix.Rlimit
	if err := unix.Prlimit(c.pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: uint64(len(fds)), Max: before.Max}
	if err := unix.Prlimit(c.pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Fatal(err)
	}
	var calls []*process
	for _, args := range [][]string{{"exec", c.id, "true"}, {"pause", c.id}, {"events", "--stats", c.id}, {"ps", c.id}} {
		calls = append(calls, e.start(call{dir: e.dir}, args...))
	}
	s.tellsTheTruth(t, true)
	if err := unix.Prlimit(c.pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
	for _, p := range calls {
		p.code()
	}
	e.do("resume", c.id)
	if r := c.exec("echo", "well"); r.stdout != "well\n" {
		t.Errorf("with descriptors again: exec: exit code %d, %q", r.code, r.stderr)
	}
	if err := unix.Prlimit(c.pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Fatal(err)
	}
	s.goes(t, &faultRow{})
}

// TestFaultVanishedKernel: the kernel, or its unpacked files, vanish between two calls.
func TestFaultVanishedKernel(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	var kernel string
	for line := range strings.Lines(readFile(t, settings)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "kernel = "); ok {
			kernel = strings.Trim(value, `"`)
		}
	}
	mine := filepath.Join(e.dir, filepath.Base(kernel))
	if err := copyFile(kernel, mine, 0o600); err != nil {
		t.Fatal(err)
	}
	cache := e.path("cache")
	with := e.otherSettings(map[string]string{
		"kernel": fmt.Sprintf("%q", mine), "cache": fmt.Sprintf("%q", cache), "templates": `"off"`,
	})
	bundle := e.bundle(withScript(ticks))
	id := e.id()
	pidFile := e.path("pid")
	p, exit := e.detach(pidFile, "--config", with, "run", "--detach", "--pid-file", pidFile, "--bundle", bundle, id)
	p.stdout.expect(t, "tick")
	unpacked, err := filepath.Glob(filepath.Join(cache, "vmlinux-*"))
	if err != nil || len(unpacked) == 0 {
		t.Fatalf("nothing was unpacked: %v", err)
	}
	for _, file := range unpacked {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if r := e.with(with, "run", "--bundle", e.bundle(withScript("echo up")), e.id()); r.stdout != "up\n" {
		t.Errorf("without the unpacked kernel: exit code %d, %q", r.code, r.stderr)
	}
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	second := e.id()
	r := e.with(with, "create", "--bundle", bundle, second)
	e.failsCleanly(second, r)
	if !strings.Contains(r.stderr, mine) {
		t.Errorf("the error does not name the kernel: %q", r.stderr)
	}
	// A container that runs needs neither.
	if r := e.do("exec", id, "echo", "well"); r.stdout != "well\n" {
		t.Errorf("exec: exit code %d, %q", r.code, r.stderr)
	}
	e.ok("delete", "--force", id)
	e.exitOf(exit)
	if left := halfMade(t, cache); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestFaultTemplateFiles damages each file of a template in each way: the container starts all
// the same.
func TestFaultTemplateFiles(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	cache := e.mkdir("cache")
	if err := os.Chmod(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	with := e.otherSettings(map[string]string{"cache": fmt.Sprintf("%q", cache)})
	bundle := e.bundle(withScript("echo whole"))
	run := func(what string) {
		t.Helper()
		if r := e.with(with, "run", "--bundle", bundle, e.id()); r.code != 0 || r.stdout != "whole\n" {
			t.Errorf("%s: exit code %d, %q, %q", what, r.code, r.stdout, r.stderr)
		}
	}
	run("at first")
	type damage struct {
		file, name string
		do         func(path string) error
	}
	var all []damage
	for _, file := range []string{"ram", "devices", "template.json"} {
		all = append(
			all,
			damage{file, "empty", func(p string) error { return os.Truncate(p, 0) }},
			damage{file, "cut in half", func(p string) error {
				info, err := os.Stat(p)
				if err != nil {
					return err
				}
				return os.Truncate(p, info.Size()/2)
			}},
			damage{file, "gone", os.Remove},
			damage{file, "a fifo", func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) }},
			damage{file, "a directory", func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }},
			damage{file, "a link", func(p string) error { return errors.Join(os.Rename(p, p+".x"), os.Symlink(p+".x", p)) }},
		)
	}
	for _, d := range someFaults(all, 3) {
		dirs := templates(t, cache)
		if len(dirs) != 1 {
			t.Fatalf("templates: %v", dirs)
		}
		if err := d.do(filepath.Join(dirs[0], d.file)); err != nil {
			t.Fatal(err)
		}
		run(d.file + " " + d.name)
	}
}

// TestFaultPairs: after two verbs at once on one container, state tells the truth.
func TestFaultPairs(t *testing.T) {
	needVM(t)
	verbs := map[string][]string{
		"start": {"start", "ID"}, "exec": {"exec", "ID", "true"}, "kill": {"kill", "ID", "KILL"}, "pause": {"pause", "ID"},
		"resume": {"resume", "ID"}, "update": {"update", "--pids-limit", "99", "ID"}, "delete": {"delete", "--force", "ID"},
		"state": {"state", "ID"}, "events": {"events", "--stats", "ID"}, "ps": {"ps", "ID"},
	}
	names := []string{"start", "exec", "kill", "pause", "resume", "update", "delete", "state", "events", "ps"}
	type pair struct{ one, other string }
	var all []pair
	for i, one := range names {
		for _, other := range names[i:] {
			all = append(all, pair{one, other})
		}
	}
	w := newWitness(t)
	for _, p := range someFaults(all, 6) {
		t.Run(p.one+":"+p.other, func(t *testing.T) {
			t.Parallel()
			before := []string{"create", "start"}
			switch {
			case p.one == "start":
				before = []string{"create"}
			case p.one == "resume" || p.other == "resume":
				before = []string{"create", "start", "pause"}
			}
			s := (&faultVerb{before: before}).prepare(t)
			s.reap()
			var calls []*process
			for _, name := range []string{p.one, p.other} {
				var args []string
				for _, arg := range verbs[name] {
					args = append(args, strings.ReplaceAll(arg, "ID", s.id))
				}
				calls = append(calls, s.e.start(call{dir: s.e.dir}, args...))
			}
			began := time.Now()
			for _, p := range calls {
				r := p.wait()
				t.Logf("%v: %s: exit code %d, %q", time.Since(began).Round(time.Millisecond), r.what, r.code, r.stderr)
				if r.code != 0 && strings.Count(strings.TrimSpace(r.stderr), "\n") != 0 {
					t.Errorf("%s: more than one line: %q", r.what, r.stderr)
				}
			}
			s.tellsTheTruth(t, false)
			s.goes(t, &faultRow{})
			w.isWell(t)
		})
	}
}

// TestExecDuringPause: a container that is paused while a process is added continues when it is
// resumed. In the guest a fork into a cgroup that freezes must not block everything else.
func TestExecDuringPause(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	for range 6 {
		exec := e.start(call{}, "exec", c.id, "true")
		pause := e.start(call{}, "pause", c.id)
		if r := pause.wait(); r.code != 0 {
			t.Fatalf("pause beside an exec: exit code %d, %q", r.code, r.stderr)
		}
		e.ok("resume", c.id)
		exec.wait() // it may have come too late
	}
	if r := c.exec("echo", "well"); r.stdout != "well\n" {
		t.Errorf("exec: exit code %d, %q", r.code, r.stderr)
	}
	c.stop()
}
