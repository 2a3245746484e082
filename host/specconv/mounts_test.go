package specconv

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestOverlay: what podman writes for -v DIR:DIR:O and for an image.
func TestOverlay(t *testing.T) {
	for name, c := range map[string]struct {
		options            []string
		data, guestOptions string
		readOnly           bool
	}{
		"volume": {[]string{"lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "private"}, "lowerdir=/a:/b,upperdir=/u,workdir=/w", "bind private", false},
		"image":  {[]string{"lowerdir=/a:/b", "ro", "private"}, "lowerdir=/a:/b", "bind ro private", true},
		"flags":  {[]string{"volatile", "nosuid", "lowerdir=/a", "userxattr"}, "volatile,lowerdir=/a,userxattr", "bind nosuid", false},
	} {
		spec := Example()
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/x", Type: "overlay", Source: "/merge", Options: c.options})
		plan, err := Convert(testEnv(), spec)
		if err != nil {
			t.Fatal(err)
		}
		checkPlan(t, plan)
		share, mount := plan.Shares[len(plan.Shares)-1], plan.Guest.Mounts[len(plan.Guest.Mounts)-1]
		if share.Overlay != c.data || share.ReadOnly != c.readOnly || !share.IsDir || share.HostPath != "/merge" || share.Destination != "/x" {
			t.Errorf("%s: share %+v", name, share)
		}
		if mount.Type != "bind" || !strings.HasSuffix(mount.Source, share.Name) || strings.Join(mount.Options, " ") != c.guestOptions {
			t.Errorf("%s: mount %+v", name, mount)
		}
	}
}

// TestCgroupHierarchy: what podman writes for --systemd on a host with cgroup v1.
func TestCgroupHierarchy(t *testing.T) {
	cgroup := specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "ro"}}
	bind := func(options ...string) specs.Mount {
		return specs.Mount{Destination: "/sys/fs/cgroup/systemd", Type: "bind", Source: "/sys/fs/cgroup/systemd", Options: append(options, "bind")}
	}
	for name, c := range map[string]struct {
		mounts  []specs.Mount
		left    int // number of mounts in the guest
		manages bool
	}{
		"systemd":   {[]specs.Mount{cgroup, bind()}, 1, true},
		"read-only": {[]specs.Mount{cgroup, bind("ro")}, 1, false},
		"no cgroup": {[]specs.Mount{bind()}, 1, false},
	} {
		spec := Example()
		spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Type == "cgroup" || m.Type == "cgroup2" })
		spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.CgroupNamespace })
		before := len(spec.Mounts)
		spec.Mounts = append(spec.Mounts, c.mounts...)
		plan, err := Convert(testEnv(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(plan.Guest.Mounts) - before; got != c.left {
			t.Errorf("%s: %d mounts in the guest, want %d", name, got, c.left)
		}
		last := plan.Guest.Mounts[len(plan.Guest.Mounts)-1]
		if writable := last.Destination == "/sys/fs/cgroup" && !slices.Contains(last.Options, "ro"); writable != c.manages {
			t.Errorf("%s: %+v", name, last)
		}
		if hasNamespace(plan.Guest.Linux, specs.CgroupNamespace) != c.manages {
			t.Errorf("%s: namespaces %v", name, plan.Guest.Linux.Namespaces)
		}
	}
}
