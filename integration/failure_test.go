//go:build integration

package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// fingerprint lists a tree's files with their sizes and modes, in order.
func fingerprint(t *testing.T, dirs ...string) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			size := info.Size()
			if d.IsDir() {
				size = 0
			}
			fmt.Fprintln(&b, path, info.Mode(), size)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// lost returns the lines of before that after lacks: a failed create may add a
// mount point to the rootfs, but must not take anything away.
func lost(before, after string) []string {
	kept := strings.Split(after, "\n")
	return slices.DeleteFunc(strings.Split(before, "\n"), func(line string) bool { return slices.Contains(kept, line) })
}

// Creates that fail at every step there is, with files in the rootfs and in two
// volumes, one of which has a mount below it. Kata 1.x deleted users' files so.
func TestFailedCreateKeepsFiles(t *testing.T) {
	t.Parallel()
	memory := int64(1) // far too little for anything
	for _, step := range []struct {
		name   string
		option specOption
		flags  []string
	}{
		{name: "before anything: bad terminal", option: withTerminal()},
		{name: "pid file in no directory", option: withArgs("true"), flags: []string{"--pid-file", "/no/such/dir/pid"}},
		{name: "missing binary", option: withArgs("/no/such")},
		{name: "missing source of the last mount", option: withBind("/no/such/source", "/x", "rbind")},
		{name: "directory on a file", option: withBind("/tmp", "/etc/passwd", "rbind")},
		{name: "file on a directory", option: withBind("/etc/hostname", "/etc", "rbind")},
		{name: "unknown filesystem", option: withMount(specs.Mount{Destination: "/x", Type: "nosuchfs", Source: "x"})},
		{name: "bad tmpfs option", option: withMount(specs.Mount{Destination: "/x", Type: "tmpfs", Source: "x", Options: []string{"size=nonsense"}})},
		{name: "missing namespace", option: withNamespace(specs.NetworkNamespace, "/no/such/ns")},
		{name: "namespace of another type", option: withNamespace(specs.NetworkNamespace, "/proc/self/ns/uts")},
		{name: "bad sysctl", option: func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.no.such": "1"} }},
		{name: "bad cwd", option: func(s *specs.Spec) { s.Process.Cwd = "/etc/passwd/x" }},
		{name: "bad rlimit", option: func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOSUCH", Soft: 1, Hard: 1}}
		}},
		{name: "bad capability", option: func(s *specs.Spec) { s.Process.User.Username = ""; s.Process.Cwd = "relative" }},
		{name: "tiny memory", option: func(s *specs.Spec) { s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory} }},
		{name: "failing hook", option: func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/false"}}}
		}},
		{name: "console socket is a file", option: withTerminal(), flags: []string{"--console-socket", "/etc/passwd"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			if runtimeName == "runc" && step.name == "tiny memory" {
				t.Skip("runc 1.1 raises the limit to what works")
			}
			e := newEnv(t)
			one, two := e.mkdir("volume"), e.mkdir("volume")
			inner := filepath.Join(two, "inner")
			if err := os.Mkdir(inner, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", inner, "tmpfs", 0, "size=1m"); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(inner, 0); err != nil {
					t.Errorf("unmount the volume's inner mount: %v", err)
				}
			}()
			writeFile(t, filepath.Join(one, "a/b/precious"), "volume one")
			writeFile(t, filepath.Join(two, "precious"), "volume two")
			writeFile(t, filepath.Join(inner, "precious"), "inner")
			bundle := e.bundle(withBind(one, "/one", "rbind", "rw"), withBind(two, "/two", "rbind", "rw"), step.option)
			writeFile(t, filepath.Join(bundle, "rootfs/precious"), "rootfs")
			before := fingerprint(t, bundle, one, two)

			id := e.id()
			args := append([]string{"create", "--bundle", bundle}, step.flags...)
			r := e.do(append(args, id)...)
			if r.code == 0 {
				t.Errorf("%s: create succeeded", step.name)
			}
			if isVM {
				if strings.Count(strings.TrimSpace(r.stderr), "\n") != 0 {
					t.Errorf("more than one line: %q", r.stderr)
				}
				r.oneLogLine(strings.TrimSpace(r.stderr))
			}
			e.do("state", id).fails(1, missing)
			if gone := lost(before, fingerprint(t, bundle, one, two)); len(gone) > 0 {
				t.Errorf("a failed create has lost or changed:\n%s", strings.Join(gone, "\n"))
			}
			// The same id works once the reason is gone.
			writeSpec(t, bundle, func() *specs.Spec {
				s := defaultSpec()
				withArgs("true")(s)
				return s
			}())
			if !isVM || step.name == "failing hook" { // one more boot is enough
				e.ok("run", "--bundle", bundle, id)
			}
		})
	}
}

// cleanAfterDeath checks what a container is whose processes were killed:
// stopped, deletable, and its files untouched.
func (c *container) cleanAfterDeath() {
	t := c.e.t
	t.Helper()
	eventually(t, "state is stopped", 10*time.Second, func() bool { return c.status() == "stopped" })
	if s := c.e.state(c.id); s.PID != 0 {
		t.Errorf("pid %d after death", s.PID)
	}
	c.e.do("kill", c.id, "TERM").fails(1, "container not running")
	c.e.ok("delete", c.id)
	if readFile(t, filepath.Join(c.bundle, "rootfs/precious")) != "rootfs" {
		t.Error("the rootfs has changed")
	}
}

func TestKillSupervisor(t *testing.T) {
	t.Parallel()
	for _, started := range []bool{false, true} {
		t.Run(fmt.Sprintf("started=%v", started), func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			bundle := e.bundle(withArgs("sleep", "1000"))
			writeFile(t, filepath.Join(bundle, "rootfs/precious"), "rootfs")
			c := e.create(bundle)
			if started {
				e.ok("start", c.id)
			}
			if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			c.exits(137)
			c.cleanAfterDeath()
		})
	}
}

// vmmsOf finds the VM processes that belong to this test: those of its
// processes that are not a pid-file process.
func (e *env) vmms() []int {
	var found []int
	for pid := range e.processes() {
		if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); strings.Contains(filepath.Base(exe), "qemu") {
			found = append(found, pid)
		}
	}
	return found
}

func TestKillVMM(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withArgs("sleep", "1000"))
	writeFile(t, filepath.Join(bundle, "rootfs/precious"), "rootfs")
	c := e.createStarted(bundle)
	p := e.start(call{}, "exec", c.id, "sh", "-c", "echo up; sleep 1000")
	p.stdout.expect(t, "up\n")
	vmms := e.vmms()
	if len(vmms) != 1 {
		t.Fatalf("vmm processes of one container: %v", vmms)
	}
	if err := unix.Kill(vmms[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := e.exitOf(c.exit); code == 0 {
		t.Error("the supervisor ended with 0 after the vmm was killed")
	}
	if r := p.wait(); r.code == 0 {
		t.Error("exec ended with 0 after the vmm was killed")
	}
	c.cleanAfterDeath()
	e.failure(c.id, "virtual machine ended: ", "killed")
}

// failure checks what is left to read of a container that has been deleted.
func (e *env) failure(id string, says ...string) {
	e.t.Helper()
	out := e.ok("failures", id)
	if !strings.Contains(out, " "+id+"\n") {
		e.t.Errorf("failures does not name container %s: %q", id, out)
	}
	for _, s := range says {
		if !strings.Contains(out, s) {
			e.t.Errorf("failures does not say %q: %q", s, out)
		}
	}
}

// A guest whose kernel panics: its last words are kept.
func TestPanicUnderContainer(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withScript("sleep 1; echo c >/proc/sysrq-trigger; sleep 1000"), func(s *specs.Spec) { s.Linux.ReadonlyPaths = nil })
	writeFile(t, filepath.Join(bundle, "rootfs/precious"), "rootfs")
	c := e.createStarted(bundle)
	c.exits(137)
	c.cleanAfterDeath()
	e.failure(c.id, "sysrq", "Kernel panic - not syncing")
}

// A cli killed in the middle of create, as by its parent's death: whatever there
// is then is stopped or nothing, and delete --force removes it.
func TestKillCreateMidway(t *testing.T) {
	if !isVM {
		t.Skip("runc leaves cgroups and processes when it is killed in create")
	}
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withArgs("sleep", "1000"))
	writeFile(t, filepath.Join(bundle, "rootfs/precious"), "rootfs")
	// How long a whole create takes here, so that the kills spread over it.
	began := time.Now()
	c := e.create(bundle)
	whole := time.Since(began)
	c.stop()
	const n = 6
	for i := range n {
		id := e.id()
		p := e.start(call{}, "create", "--bundle", bundle, id)
		select {
		case <-p.done:
		case <-time.After(whole * time.Duration(i) / n):
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			<-p.done
		}
		// The supervisor notices by itself; its death may take a moment.
		if e.do("state", id).code == 0 {
			eventually(t, "a half-made container is stopped or gone", 15*time.Second, func() bool {
				r := e.do("state", id)
				if r.code != 0 {
					return true
				}
				var s status
				mustJSON(t, r.stdout, &s)
				return s.Status == "stopped" || s.Status == "created"
			})
		}
		e.ok("delete", "--force", id)
		e.ok("delete", "--force", id)
		e.do("state", id).fails(1, missing)
		if readFile(t, filepath.Join(bundle, "rootfs/precious")) != "rootfs" {
			t.Fatal("the rootfs has changed")
		}
	}
}

// soon is how long delete --force may take beside a husk call that has been stopped: much
// less than its own deadline of 30 s, whatever the machine is busy with.
const soon = 15 * time.Second

// A stopped cli does not reap its exec process, which keeps the first process of the
// container's pid namespace from ending: delete --force does not wait for that.
func TestDeleteBesideStoppedExec(t *testing.T) {
	needVM(t) // runc waits 10 s and fails
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	p := e.start(call{}, "exec", c.id, "sh", "-c", "echo in; sleep 1000")
	p.stdout.expect(t, "in")
	e.deleteWhileStopped(p, c.id)
	if p.code() == 0 {
		t.Error("exec succeeded though its container has gone")
	}
	e.exitOf(c.exit)
}

// A create that is stopped holds the container's lock: delete --force takes it back all
// the same.
func TestDeleteOfStoppedCreate(t *testing.T) {
	needVM(t) // runc has no lock
	t.Parallel()
	e := newEnv(t)
	id, mark, end := e.id(), e.path("mark"), e.path("end")
	if err := unix.Mkfifo(end, 0o600); err != nil {
		t.Fatal(err)
	}
	p := e.start(call{dir: e.dir}, "create", "--bundle", e.bundle(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo x >" + mark + "; read x <" + end}}}}
	}), id)
	eventually(t, "the hook runs", testTimeout, func() bool {
		_, err := os.Stat(mark)
		return err == nil
	})
	e.deleteWhileStopped(p, id)
	<-p.done // killed: it was the holder
	if status := p.cmd.ProcessState; status.Success() {
		t.Errorf("create: %v", status)
	}
	// A hook outlives the call that runs it, as with runc.
	f, err := os.OpenFile(end, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x\n"); err != nil {
		t.Error(err)
	}
}

// deleteWhileStopped deletes a container while a call of the runtime is stopped.
func (e *env) deleteWhileStopped(p *process, id string) {
	e.t.Helper()
	if err := p.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		e.t.Fatal(err)
	}
	eventually(e.t, "it has stopped", testTimeout, func() bool {
		st := procStat(p.cmd.Process.Pid)
		return len(st) > 0 && st[0] == "T"
	})
	began := time.Now()
	e.ok("delete", "--force", id)
	if took := time.Since(began); took > soon {
		e.t.Errorf("delete --force took %v", took)
	}
	e.do("state", id).fails(1, missing)
	// It may have been killed.
	_ = p.cmd.Process.Signal(unix.SIGCONT)
}

// Several verbs at once on one container: one wins, the others say why not.
func TestConcurrentVerbs(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withArgs("sleep", "1000")))
	n := 4
	if !isVM {
		n = 1 // runc 1.1: two starts race for one fifo, and now and then one hangs
	}
	var starts []*process
	for range n {
		starts = append(starts, e.start(call{}, "start", c.id))
	}
	won := 0
	for _, p := range starts {
		if r := p.wait(); r.code == 0 {
			won++
		}
	}
	if won != 1 {
		t.Errorf("%d of %d concurrent starts succeeded", won, n)
	}
	var deletes []*process
	for range 4 {
		deletes = append(deletes, e.start(call{}, "delete", "--force", c.id))
	}
	for _, p := range deletes {
		if r := p.wait(); r.code != 0 && isVM {
			t.Errorf("concurrent delete --force: exit code %d: %s", r.code, r.stderr)
		}
	}
	e.ok("delete", "--force", c.id)
	e.exitOf(c.exit)
	e.do("state", c.id).fails(1, missing)
}

// Two creates of one id: one wins, and the loser does it no harm.
func TestConcurrentCreatesOfOneID(t *testing.T) {
	if !isVM {
		t.Skip("runc 1.1 has no lock: both creates may fail")
	}
	t.Parallel()
	e := newEnv(t)
	bundle, id := e.bundle(withArgs("sleep", "1000")), e.id()
	pidFiles := []string{e.path("pid"), e.path("pid")}
	var calls []*process
	for _, f := range pidFiles {
		calls = append(calls, e.start(call{}, "create", "--bundle", bundle, "--pid-file", f, id))
	}
	won := -1
	for i, p := range calls {
		if p.code() == 0 {
			if won >= 0 {
				t.Fatal("both creates of one id succeeded")
			}
			won = i
		}
	}
	if won < 0 {
		t.Fatalf("no create of the two succeeded: %s / %s", calls[0].stderr, calls[1].stderr)
	}
	exit := reap(readPID(t, pidFiles[won]))
	e.ok("start", id)
	if s := e.state(id); s.Status != "running" {
		t.Errorf("state: %s", s.Status)
	}
	e.ok("delete", "--force", id)
	e.exitOf(exit)
}

// A program that cannot be executed is known only at start, and start says so:
// the end of the container, which follows at once, must not come before it.
func TestStartSaysWhyNotExecuted(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withArgs("/bin/bad"))
	bad := filepath.Join(bundle, "rootfs/bin/bad")
	writeFile(t, bad, "#!/no/such/interpreter\n")
	if err := os.Chmod(bad, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		r := e.do("run", "--bundle", bundle, e.id())
		if r.code != 1 || !strings.Contains(r.stderr, "no such file or directory") {
			t.Fatalf("exit code %d, stderr %q", r.code, r.stderr)
		}
	}
}
