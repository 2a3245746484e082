package specconv

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// checkPlan checks what must hold for every plan, whatever the spec says.
func checkPlan(t *testing.T, p *Plan) {
	t.Helper()
	if len(p.Shares) == 0 || p.Shares[0].Name != "rootfs" || p.Shares[0].Destination != "/" || !p.Shares[0].IsDir {
		t.Fatalf("the rootfs is not the first share: %+v", p.Shares)
	}
	shared := map[string]Share{}
	for i, s := range p.Shares {
		if !filepath.IsAbs(s.HostPath) || filepath.Clean(s.HostPath) != s.HostPath {
			t.Errorf("share %d: host path %q is not absolute and clean", i, s.HostPath)
		}
		if !filepath.IsLocal(s.Name) || filepath.Clean(s.Name) != s.Name {
			t.Errorf("share %d: name %q is not local and clean", i, s.Name)
		}
		for _, other := range p.Shares[:i] {
			if s.Name == other.Name || strings.HasPrefix(s.Name, other.Name+"/") || strings.HasPrefix(other.Name, s.Name+"/") {
				t.Errorf("shares %q and %q lie in each other", s.Name, other.Name)
			}
		}
		if base := filepath.Base(s.Name); i > 0 && base != filepath.Base(s.HostPath) && s.HostPath != "/" {
			t.Errorf("share %d: name %q does not end as %q", i, s.Name, s.HostPath)
		}
		if !filepath.IsAbs(s.Destination) || i > 0 && s.Destination == "/" {
			t.Errorf("share %d: destination %q", i, s.Destination)
		}
		shared[filepath.Join(GuestShareDir, s.Name)] = s
	}
	checkGuest(t, p.Guest, shared)
	for _, n := range []struct {
		name       string
		value, max int
	}{{"memory", p.VM.MemoryMiB, 1 << 20}, {"vcpus", p.VM.VCPUs, 255}, {"nics", p.VM.NICs, 8}} {
		if n.value < 0 || n.value > n.max {
			t.Errorf("%s of the VM: %d", n.name, n.value)
		}
	}
	if !slices.ContainsFunc(p.Shadow.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace }) {
		t.Error("the supervisor would look for interfaces in the host's network namespace")
	}
	if !slices.Contains(p.Shadow.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace}) {
		t.Error("the supervisor would mount in a namespace that is not its own")
	}
}

func checkGuest(t *testing.T, g *specs.Spec, shared map[string]Share) {
	t.Helper()
	if g.Root == nil || g.Root.Path != GuestShareDir+"/rootfs" {
		t.Errorf("root of the guest: %+v", g.Root)
	}
	if h := g.Hooks; h == nil && g.Annotations != nil || h != nil && (len(h.StartContainer) == 0 || len(h.CreateContainer)+len(h.CreateRuntime)+len(h.Poststart)+len(h.Poststop) > 0) {
		t.Errorf("hooks of the guest: %+v, with annotations %v", h, g.Annotations)
	}
	if g.Linux.Seccomp != nil || g.Solaris != nil || g.Windows != nil || g.VM != nil || g.ZOS != nil || g.FreeBSD != nil {
		t.Error("the guest is told what it has no use for")
	}
	for i, ns := range g.Linux.Namespaces {
		mapped := len(g.Linux.UIDMappings) > 0 && len(g.Linux.GIDMappings) > 0
		if ns.Path != "" || ns.Type == specs.UserNamespace && !mapped || ns.Type == specs.TimeNamespace && len(g.Linux.TimeOffsets) == 0 {
			t.Errorf("namespace %d of the guest: %+v", i, ns)
		}
	}
	binds := 1 // the rootfs
	for i, m := range g.Mounts {
		if !filepath.IsAbs(m.Destination) || filepath.Clean(m.Destination) != m.Destination || m.Destination == "/" {
			t.Errorf("mount %d of the guest: destination %q", i, m.Destination)
		}
		if !isBind(m) {
			if !slices.Contains(guestMountTypes, m.Type) {
				t.Errorf("mount %d of the guest: type %q", i, m.Type)
			}
			continue
		}
		if lastOf(m.Options, "bind", "rbind") == "" || m.Type != "bind" {
			t.Errorf("mount %d of the guest is half a bind: %+v", i, m)
		}
		if s, ok := shared[m.Source]; ok {
			binds++
			if s.Destination != m.Destination || s.ReadOnly != readOnly(m.Options) {
				t.Errorf("mount %d of the guest: halves differ: %+v, %+v", i, m, s)
			}
			continue
		}
		var device bool
		for _, path := range guestDevices {
			device = device || path == m.Source
		}
		if !device {
			t.Errorf("mount %d of the guest: source %q is not a share of this container", i, m.Source)
		}
	}
	if binds != len(shared) {
		t.Errorf("%d shares, %d of them mounted", len(shared), binds)
	}
}
