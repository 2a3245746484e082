//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// statusOf returns the status fields of a process. It fails if they differ between its threads.
func statusOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	var all map[string]string
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			switch name {
			case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp":
				fields[name] = strings.TrimSpace(value)
			}
		}
		if all != nil && fmt.Sprint(all) != fmt.Sprint(fields) {
			t.Errorf("%s has %v, another thread %v", task, fields, all)
		}
		all = fields
	}
	return all
}

// holds fails if a process has a capability that is not in atMost, can gain one, is under no
// filter, can be looked into by stranger (setpriv's options), or has a directory of the host
// open from which others can be reached.
func holds(t *testing.T, what string, pid int, atMost uint64, stranger ...string) {
	t.Helper()
	fields := statusOf(t, pid)
	for _, name := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		mask, err := strconv.ParseUint(fields[name], 16, 64)
		if err != nil || mask&^atMost != 0 {
			t.Errorf("%s: %s is %s, want at most %x", what, name, fields[name], atMost)
		}
	}
	if fields["NoNewPrivs"] != "1" || fields["Seccomp"] != "2" {
		t.Errorf("%s: %v", what, fields)
	}
	if looksInto(t, pid, stranger...) {
		t.Errorf("%s: it can be looked into with %v", what, stranger)
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("%s: descriptors: %v", what, err)
	}
	for _, path := range fds {
		name, err := os.Readlink(path)
		if err != nil {
			continue // closed meanwhile
		}
		if strings.HasPrefix(name, "/proc/") && !strings.HasSuffix(name, "/status") && !strings.HasSuffix(name, "/oom_score_adj") {
			t.Errorf("%s: has %s open", what, name)
		}
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			continue
		}
		// The directory above it must be itself.
		dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Errorf("%s: %s: %v", what, name, err)
			continue
		}
		var self, above unix.Stat_t
		if err = unix.Fstat(int(dir.Fd()), &self); err == nil {
			err = unix.Fstatat(int(dir.Fd()), "..", &above, 0)
		}
		if err != nil || self.Dev != above.Dev || self.Ino != above.Ino {
			t.Errorf("%s: has the directory %s open, which leads to the host's root: %v", what, name, err)
		}
		dir.Close()
	}
}

// nobody is a user of the host without rights, by setpriv's options.
var nobody = []string{"--reuid=65534", "--regid=65534", "--clear-groups"}

// root is a process of uid 0 with all capabilities but SYS_PTRACE, by setpriv's options.
var root = []string{"--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"}

// looksInto says whether a process that setpriv makes with these options, in the host's
// namespaces, may do to it what takes a tracer's rights: of what the kernel shows to those
// alone, PERFMON sees some, but not this.
func looksInto(t *testing.T, pid int, options ...string) bool {
	t.Helper()
	out, err := exec.Command("setpriv", append(options, "readlink", "-v", fmt.Sprintf("/proc/%d/exe", pid))...).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "Permission denied") && !strings.Contains(string(out), "Operation not permitted") {
		t.Fatalf("look into %d: %v: %s", pid, err, out)
	}
	return err == nil
}

// TestVMMIsNotLookedInto: no user of the host can look into a vmm, nor who shares its uid.
func TestVMMIsNotLookedInto(t *testing.T) {
	needVM(t)
	t.Parallel()
	none := []string{"--bounding-set=-all", "--inh-caps=-all"}
	t.Run("plain", func(t *testing.T) {
		t.Parallel()
		c, vmm := vmmOf(t)
		if !looksInto(t, vmm) {
			t.Error("root cannot look into it, so this test sees nothing")
		}
		for name, options := range map[string][]string{"nobody": nobody, "root without capabilities": none} {
			if looksInto(t, vmm, options...) {
				t.Errorf("%s can look into the vmm", name)
			}
		}
		c.stop()
	})
	t.Run("user namespace", func(t *testing.T) {
		t.Parallel()
		e := newEnv(t)
		c := e.createStarted(e.mappedBundle(withArgs("sleep", "1000"), withUserNS("")))
		vmm := e.vmms()[0]
		info, err := os.Stat(fmt.Sprintf("/proc/%d", vmm))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		own := []string{fmt.Sprintf("--reuid=%d", st.Uid), fmt.Sprintf("--regid=%d", st.Gid), "--clear-groups"}
		for name, options := range map[string][]string{"nobody": nobody, "its own user": own} {
			if looksInto(t, vmm, options...) {
				t.Errorf("%s (%v) can look into the vmm", name, options)
			}
		}
		c.stop()
	})
}

func bit(caps ...int) (mask uint64) {
	for _, c := range caps {
		mask |= 1 << c
	}
	return mask
}

// answeringCaps are capabilities on files, which QEMU has and the process that answers some of
// its calls needs.
var answeringCaps = bit(unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_MKNOD, unix.CAP_SETFCAP)

// TestProcessesDropPrivileges: husk's processes that stay on the host with a container have
// hardly any rights. All other tests show that they can still do their work.
func TestProcessesDropPrivileges(t *testing.T) {
	needVM(t)
	t.Parallel()
	for name, withUsers := range map[string]bool{"plain": false, "user namespace": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			options := []specOption{withArgs("sleep", "1000"), withMemory(200)}
			var bundle string
			if withUsers {
				bundle = e.mappedBundle(append(options, withUserNS(""))...)
			} else {
				bundle = e.bundle(append(options, func(s *specs.Spec) { s.Process.Capabilities.Bounding = nil })...)
			}
			c := e.create(bundle)
			seen := func(when string, cli int) {
				for pid := range e.processes() {
					exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
					switch {
					case pid == cli: // it waits and gets nothing from a guest
						continue
					case strings.Contains(filepath.Base(exe), "qemu"):
						continue
					case pid == c.pid && withUsers:
						// To the host's root belongs the user namespace that it is in.
						holds(t, when+": stand-in", pid, 0, nobody...)
					case filepath.Base(exe) == filepath.Base(runtimePath):
						most := answeringCaps | bit(unix.CAP_NET_ADMIN)
						if withUsers { // the vmm is another user
							most |= bit(unix.CAP_KILL, unix.CAP_SYS_PTRACE)
						}
						holds(t, fmt.Sprintf("%s: %d", when, pid), pid, most, root...)
					}
				}
			}
			seen("created", 0)
			e.ok("start", c.id)
			p := e.start(call{}, "exec", c.id, "sh", "-c", "echo up; exec sleep 1000")
			p.stdout.expect(t, "up\n")
			exec := 0
			eventually(t, "an exec process under a filter", testTimeout, func() bool {
				for pid := range e.processes() {
					cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
					if strings.Contains(string(cmdline), "echo up") && pid != p.cmd.Process.Pid {
						exec = pid
					}
				}
				// The process in the guest may have written its first line before.
				status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", exec))
				return err == nil && strings.Contains(string(status), "Seccomp:\t2")
			})
			holds(t, "exec process", exec, 0, root...)
			seen("running", p.cmd.Process.Pid)
			c.stop()
			p.wait()
		})
	}
}
