//go:build integration

package integration

import (
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestReadonlyRootfsIsMadeReadyFirst: what a runtime makes in a rootfs is made before the
// rootfs becomes read-only.
func TestReadonlyRootfsIsMadeReadyFirst(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	mode, uid := os.FileMode(0o640), uint32(7)
	out := e.ok("run", "--bundle", e.bundle(withScript(
		"pwd; touch x 2>/dev/null && echo written; stat -c '%A %u' /nodes/zero; head -c 3 /nodes/zero | wc -c; stat -c %F /new/mount; touch /new/tmpfs/y && echo mounted; touch /nodes/more 2>/dev/null && echo written; true",
	), withBind(e.mkdir("volume"), "/new/mount", "ro"), withMount(specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/new/tmpfs"}), func(s *specs.Spec) {
		s.Root.Readonly = true
		s.Process.Cwd = "/made/by/runtime"
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/nodes/zero", Type: "c", Major: 1, Minor: 5, FileMode: &mode, UID: &uid}}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr[int64](1), Minor: ptr[int64](5), Access: "rwm"})
	}), e.id())
	if want := "/made/by/runtime\ncrw-r----- 7\n3\ndirectory\nmounted\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}
