//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// deviceGroup returns the cgroup directory that controls a process's access to devices.
func deviceGroup(t *testing.T, pid int) string {
	t.Helper()
	unified := ""
	_, err := os.Stat("/sys/fs/cgroup/devices/devices.list")
	v1 := err == nil
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/cgroup", pid))) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case fields[1] == "devices" && v1:
			return filepath.Join("/sys/fs/cgroup/devices", fields[2])
		case fields[1] == "":
			unified = filepath.Join("/sys/fs/cgroup", fields[2])
		}
	}
	return unified
}

// openIn opens a device node in a process of the cgroup and returns its error.
func (e *env) openIn(group, node string) string {
	t := e.t
	t.Helper()
	cmd := exec.Command("sh", "-c", `read -r x; exec 3<"$1" && echo open`, "sh", node)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Appendf(nil, "%d", cmd.Process.Pid), 0)
	_, _ = in.Write([]byte("\n"))
	if werr := cmd.Wait(); err != nil || werr != nil && !errors.As(werr, new(*exec.ExitError)) {
		t.Fatal(err, werr)
	}
	return out.String()
}

// TestHostDevices: in the cgroup of a container whose spec allows no device, no process of the
// host can open one, with cgroup v1 and v2, before and after start and after an update.
func TestHostDevices(t *testing.T) {
	t.Parallel()
	for name, rules := range map[string][]specs.LinuxDeviceCgroup{
		"all denied": {{Allow: false, Access: "rwm"}},
		"no rules":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			node := func(name string, kind uint32, major, minor uint32) string {
				path := e.path(name)
				if err := unix.Mknod(path, kind|0o600, int(unix.Mkdev(major, minor))); err != nil {
					t.Fatal(err)
				}
				return path
			}
			null := node("null", unix.S_IFCHR, 1, 3)
			denied := []string{node("kmsg", unix.S_IFCHR, 1, 11), node("mem", unix.S_IFCHR, 1, 1), node("kvm", unix.S_IFCHR, 10, 232), node("loop", unix.S_IFBLK, 7, 0)}
			c := e.create(e.bundle(withArgs("sleep", "1000"), func(s *specs.Spec) { s.Linux.Resources.Devices = rules }))
			group := deviceGroup(t, c.pid)
			check := func(when string) {
				t.Helper()
				for _, path := range denied {
					if got := e.openIn(group, path); !strings.Contains(got, "Operation not permitted") && !strings.Contains(got, "Permission denied") {
						t.Errorf("%s: open of %s in the container's cgroup: %s", when, filepath.Base(path), got)
					}
				}
				if got := e.openIn(group, null); got != "open\n" {
					t.Errorf("%s: open of null: %s", when, got)
				}
			}
			check("created")
			e.ok("start", c.id)
			check("started")
			if _, err := os.Stat(filepath.Join(group, "pids.max")); err == nil || strings.HasPrefix(group, "/sys/fs/cgroup/devices/") {
				e.ok("update", "--pids-limit", "100", c.id)
				check("updated")
			}
			c.exec("true").is(0) // an exec still has what it needs
			c.stop()
			if _, err := os.Stat(group); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", group, err)
			}
		})
	}
}
