package libcontainer

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestPrepared: a prepared stage becomes a container like any other.
func TestPrepared(t *testing.T) {
	for name, terminal := range map[string]bool{"pipes": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			rootfs := newRootfs(t)
			root, path := cgroup2(t)
			p, err := Prepare(nil, root, path)
			if err != nil {
				t.Fatal(err)
			}
			spec := newSpec(rootfs, "hostname; cat /proc/net/if_inet6; echo $$; exit 5")
			spec.Process.Terminal = terminal
			c := start(t, &Config{Spec: spec, Prepared: p, CgroupRoot: root, CgroupPath: path + "-unused"})
			if c.Init().PID() != p.PID() {
				t.Errorf("process %d, prepared was %d", c.Init().PID(), p.PID())
			}
			equal(t, "terminal", c.Init().Console != nil, terminal)
			if !terminal {
				out := collect(t, c.Init())
				contains(t, "host name", out.out, "box\n")
				contains(t, "lo is up", out.out, "00000000000000000000000000000001")
				contains(t, "pid", out.out, "\n1\n")
			}
			equal(t, "code", wait(t, c.Init()).Code, 5)
			if err := c.Destroy(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(root + path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the prepared cgroup is left: %v", err)
			}
		})
	}
}

// TestPreparedDoesNotFit: a container with other namespaces is made anew, and nothing is left
// of the prepared one.
func TestPreparedDoesNotFit(t *testing.T) {
	rootfs := newRootfs(t)
	root, path := cgroup2(t)
	p, err := Prepare(nil, root, path)
	if err != nil {
		t.Fatal(err)
	}
	spec := newSpec(rootfs, "true")
	spec.Hostname = ""
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UTSNamespace })
	cfg := &Config{Spec: spec, Prepared: p, CgroupRoot: root, CgroupPath: path + "-own"}
	c := start(t, cfg)
	if c.Init().PID() == p.PID() || cfg.Prepared != nil {
		t.Error("the prepared stage was used")
	}
	equal(t, "code", wait(t, c.Init()).Code, 0)
	if _, err := os.Stat(root + path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the prepared cgroup is left: %v", err)
	}
}

// TestPreparedMoves: a container that sees the name of its cgroup is in the cgroup it asked
// for, and OOM kills and removal use that cgroup.
func TestPreparedMoves(t *testing.T) {
	rootfs := newRootfs(t)
	root, path := cgroup2(t)
	p, err := Prepare(nil, root, path)
	if err != nil {
		t.Fatal(err)
	}
	spec := newSpec(rootfs, "cat /proc/self/cgroup; exit 5")
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.CgroupNamespace })
	own := path + "-own/deep"
	spec.Linux.CgroupsPath = own
	c := start(t, &Config{Spec: spec, Prepared: p, CgroupRoot: root, CgroupPath: own})
	t.Cleanup(func() { _ = os.Remove(filepath.Dir(root + own)) })
	if c.Init().PID() != p.PID() {
		t.Errorf("process %d, prepared was %d", c.Init().PID(), p.PID())
	}
	if _, err := os.Stat(root + path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the prepared cgroup is left: %v", err)
	}
	equal(t, "cgroup", c.CgroupDir(), root+own)
	contains(t, "cgroup seen inside", collect(t, c.Init()).out, own+"\n")
	equal(t, "code", wait(t, c.Init()).Code, 5)
	if err := c.Destroy(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + own); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its cgroup is left: %v", err)
	}
}
