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

// fingerprint lists the files of trees with their sizes and modes, in order.
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

// lost returns the lines of before that are not in after. A failed create may add a mount point
// to the rootfs, but must remove nothing.
func lost(before, after string) []string {
	kept := strings.Split(after, "\n")
	return slices.DeleteFunc(strings.Split(before, "\n"), func(line string) bool { return slices.Contains(kept, line) })
}

// TestFailedCreateKeepsFiles makes create fail at every step, with files in the rootfs and in
// two volumes, one of which has a mount below it. Kata 1.x has deleted users' files in this
// way.
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
			// The same id works when the cause of the failure is gone.
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

// cleanAfterDeath checks a container whose processes were killed: it is stopped, can be
// deleted, and its files are unchanged.
func (c *container) cleanAfterDeath() {
	t := c.e.t
	t.Helper()
	eventually(t, "state is stopped", testTimeout, func() bool { return c.status() == "stopped" })
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

// vmms returns the vmm processes of this test: those of its processes whose pid is in no pid
// file.
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

// failure checks what husk failures says of a deleted container.
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

// TestPanicUnderContainer: the last lines of a guest whose kernel panics are kept.
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

// TestKillCreateMidway: if a cli is killed during create, as when its parent dies, the
// container is stopped or does not exist, and delete --force removes it.
func TestKillCreateMidway(t *testing.T) {
	if !isVM {
		t.Skip("runc leaves cgroups and processes when it is killed in create")
	}
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withArgs("sleep", "1000"))
	writeFile(t, filepath.Join(bundle, "rootfs/precious"), "rootfs")
	// The duration of a whole create on this machine, over which the kills are spread.
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
		// The supervisor notices by itself and may need a moment to end.
		if e.do("state", id).code == 0 {
			eventually(t, "a half-made container is stopped or gone", testTimeout, func() bool {
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

// soon bounds delete --force while another husk call is stopped. It is much less than that
// call's own deadline of 30 s, with room for a busy machine.
const soon = 25 * time.Second

// TestDeleteBesideStoppedExec: a stopped cli does not reap its exec process, so the first
// process of the container's pid namespace cannot end. delete --force does not wait for that.
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

// TestDeleteOfStoppedCreate: a create that is stopped holds the container's lock, and delete
// --force deletes the container all the same.
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
	<-p.done // it held the lock and was killed
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

// TestConcurrentVerbs: of several verbs at once on one container one succeeds, and the others
// say why they fail.
func TestConcurrentVerbs(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	c := e.create(e.bundle(withArgs("sleep", "1000")))
	n := 4
	if !isVM {
		n = 1 // with runc 1.1 two starts use one fifo, and sometimes one hangs
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

// TestConcurrentCreatesOfOneID: of two creates with one id one succeeds, and the other does not
// harm it.
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

// TestStartSaysWhyNotExecuted: only start finds out that a program cannot be executed. start
// has to report that before the container's end, which follows at once, is noticed.
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
