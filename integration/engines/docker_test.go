//go:build integration

package engines

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// docker is one version of Docker: its programs, and the cases that it has in addition to the
// common ones.
type docker struct {
	name  string
	root  func(*testing.T) *root
	bin   string // searched before the others in PATH
	cases []string
}

// start starts a containerd and a dockerd whose default runtime is runtime.
func (d docker) start(t *testing.T, runtime string) *engine {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	r := d.root(t)
	setPath := ""
	if d.bin != "" {
		setPath = "PATH=" + d.bin + ":$PATH\n"
	}
	binary := r.runtime(t, runtime, dir, setPath)
	write(t, path("containerd.toml"), fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = %q
[ttrpc]
address = %q
`, path("cd-root"), path("cd-state"), path("containerd.sock"), path("containerd.ttrpc.sock")))
	write(t, path("daemon.json"), fmt.Sprintf(`{
	"runtimes": {"under-test": {"path": %q}},
	"default-runtime": "under-test",
	"live-restore": true,
	"cgroup-parent": "/husk-engines"
}
`, binary))
	// A shell script starts and ends dockerd, so that cases can do that too.
	write(t, path("dockerd.sh"), fmt.Sprintf(`set -eu
%scd %s
if [ -s dockerd.pid ]; then
	pid=$(cat dockerd.pid)
	case ${1:-} in
	reload) exec kill -HUP "$pid" ;;
	kill) kill -KILL "$pid" ;;
	*) kill "$pid" ;;
	esac
	for _ in $(seq 300); do [ -e /proc/"$pid" ] || break; sleep 0.1; done
	rm -f dockerd.pid
fi
[ "${1:-}" != stop ] || exit 0
setsid dockerd --config-file daemon.json --containerd $PWD/containerd.sock -H unix://$PWD/docker.sock -p $PWD/dockerd.pid \
	--data-root $PWD/data --exec-root $PWD/exec --exec-opt native.cgroupdriver=cgroupfs >>dockerd.log 2>&1 </dev/null &
for _ in $(seq 600); do
	! /usr/bin/docker -H unix://$PWD/docker.sock version >/dev/null 2>&1 || exit 0
	sleep 0.1
done
tail -20 dockerd.log >&2
exit 1
`, setPath, dir))
	containerd, err := startDaemon(path("containerd.log"), path("containerd.sock"),
		r.command("bash", "-c", setPath+"exec containerd -c "+path("containerd.toml"))...)
	if err != nil {
		t.Fatal(err)
	}
	stop := func() {
		// Containers outlive the daemon.
		engine := path("bin/engine")
		r.shell(t, engine+" ps -aq | xargs -r "+engine+" rm -fv")
		r.shell(t, "bash "+path("dockerd.sh")+" stop")
		containerd.stop()
		r.unmountBelow(t, dir)
		if t.Failed() {
			t.Logf("dockerd: %s", tail(path("dockerd.log")))
		}
	}
	r.shell(t, "bash "+path("dockerd.sh"))
	return &engine{
		name:      d.name,
		root:      r,
		version:   r.shell(t, "/usr/bin/docker -H unix://"+path("docker.sock")+" version -f '{{.Server.Version}}'"),
		caseFiles: append([]string{"common.sh", "docker.sh"}, d.cases...),
		prelude: program(t, dir, "engine", "exec /usr/bin/docker -H unix://"+path("docker.sock")) +
			program(t, dir, "restart_engine", "exec bash "+path("dockerd.sh")) +
			fmt.Sprintf("engine_config=%s\n", path("daemon.json")),
		cleanUp: `
engine ps -aq --filter name=$n | xargs -r engine rm -fv
engine network ls -q --filter name=$n | xargs -r engine network rm
engine volume ls -q --filter name=$n | xargs -r engine volume rm
engine image ls -q --filter reference="$n*" | xargs -r engine image rm -f`,
		stop: stop,
	}
}

// stop ends the daemon and waits for it.
func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(os.Interrupt)
	<-d.ended
}
