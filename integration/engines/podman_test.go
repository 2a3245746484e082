//go:build integration

package engines

import (
	"fmt"
	"path/filepath"
	"testing"
)

// podman is one version of podman.
type podman struct {
	name string
	root func(*testing.T) *root
}

// start writes files that make podman use only its own directories. They are in
// /etc/containers, on which a tmpfs is mounted.
func (p podman) start(t *testing.T, runtime string) *engine {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	r := p.root(t)
	write(t, path("containers.conf"), fmt.Sprintf(`[containers]
log_driver = "k8s-file"
netns = "bridge"
# More than the machine may give is EPERM.
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[network]
network_backend = "netavark"
network_config_dir = %q
firewall_driver = "iptables"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = %q
static_dir = %q
volume_path = %q
runtime = "undertest"
runtime_supports_json = ["undertest"]
[engine.runtimes]
undertest = [%q]
`, path("net"), path("tmp"), path("root/libpod"), path("volumes"), r.runtime(t, runtime, dir, "")))
	write(t, path("storage.conf"), fmt.Sprintf("[storage]\ndriver = \"overlay\"\nrunroot = %q\ngraphroot = %q\n", path("run"), path("root")))
	write(t, path("policy.json"), `{"default":[{"type":"insecureAcceptAnything"}]}`)
	r.shell(t, fmt.Sprintf("mkdir -p /etc/containers && mount -t tmpfs tmpfs /etc/containers && cd %s && cp containers.conf storage.conf policy.json /etc/containers", dir))
	return &engine{
		name:      p.name,
		root:      r,
		version:   r.shell(t, "podman version -f '{{.Client.Version}}'"),
		caseFiles: []string{"common.sh", "podman.sh"},
		prelude:   program(t, dir, "engine", "export PODMAN_IGNORE_CGROUPSV1_WARNING=1\nexec podman"),
		cleanUp: `
engine pod ls -q --filter name=$n | while read -r p; do engine pod rm -f -t 0 $p; done
engine ps -aq --filter name=$n | while read -r c; do engine rm -fv -t 0 $c; done
engine network ls -q --filter name=$n | while read -r c; do engine network rm -f $c; done
engine volume ls -q --filter name=$n | while read -r c; do engine volume rm -f $c; done
engine image exists $n-img && engine image rm -f $n-img || true`,
		stop: func() {
			r.shell(t, path("bin/engine")+" rm -af -t 0")
			r.unmountBelow(t, dir)
			r.shell(t, "umount /etc/containers")
		},
	}
}
