//go:build integration

package integration

import (
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func withOverlay(destination, lower, upper, work string) specOption {
	m := specs.Mount{Type: "overlay", Source: "overlay", Destination: destination, Options: []string{"lowerdir=" + lower}}
	if upper != "" {
		m.Options = append(m.Options, "upperdir="+upper, "workdir="+work)
	}
	return withMount(m)
}

// TestOverlayMounts: what podman makes for -v DIR:DIR:O and for --mount type=image.
func TestOverlayMounts(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	lower, second, upper, work := e.mkdir("lower"), e.mkdir("second"), e.mkdir("upper"), e.mkdir("work")
	writeFile(t, filepath.Join(lower, "file"), "lower\n")
	writeFile(t, filepath.Join(second, "other"), "second\n")
	e.ok("run", "--bundle", e.bundle(withOverlay("/writable", lower, upper, work), withOverlay("/image", lower+":"+second, "", ""),
		withScript("set -e; cat /writable/file /image/file /image/other; echo upper >/writable/file; cat /writable/file; ! touch /image/x 2>/dev/null")), e.id())
	if got := readFile(t, filepath.Join(upper, "file")); got != "upper\n" {
		t.Errorf("in the upper directory: %q", got)
	}
	if got := readFile(t, filepath.Join(lower, "file")); got != "lower\n" {
		t.Errorf("in the lower directory: %q", got)
	}
	if mounts := readFile(t, "/proc/self/mounts"); strings.Contains(mounts, upper) {
		t.Error("the overlay is still mounted")
	}
	e.do("create", "--bundle", e.bundle(withOverlay("/x", e.path("missing"), "", "")), e.id()).is(1)
}

// TestWritableCgroups: a container in which systemd is to run can manage cgroups of its own.
func TestWritableCgroups(t *testing.T) {
	if !isVM {
		t.Skip("with runc they are the host's")
	}
	t.Parallel()
	e := newEnv(t)
	out := e.ok("run", "--bundle", e.bundle(withoutNamespace(specs.CgroupNamespace),
		func(s *specs.Spec) {
			for i, m := range s.Mounts {
				if m.Destination == "/sys/fs/cgroup" {
					s.Mounts = append(s.Mounts[:i], s.Mounts[i+1:]...)
					break
				}
			}
		},
		withMount(specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}}),
		withBind("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd"),
		withScript("mkdir /sys/fs/cgroup/own && echo $$ >/sys/fs/cgroup/own/cgroup.procs && cat /proc/self/cgroup")), e.id())
	if out != "0::/own\n" {
		t.Errorf("the process is in %q", out)
	}
}
