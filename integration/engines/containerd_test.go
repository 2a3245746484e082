//go:build integration

package engines

import (
	"fmt"
	"path/filepath"
	"testing"
)

// ctr is one version of containerd with its client.
type ctr struct {
	name string
	root func(*testing.T) *root
	bin  string // searched before the others in PATH
}

// start starts a containerd. ctr needs the runtime's binary in each call, so the program engine
// adds it.
func (c ctr) start(t *testing.T, runtime string) *engine {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	r := c.root(t)
	setPath := ""
	if c.bin != "" {
		setPath = "PATH=" + c.bin + ":$PATH\n"
	}
	write(t, path("containerd.toml"), fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = %q
[ttrpc]
address = %q
`, path("cd-root"), path("cd-state"), path("containerd.sock"), path("containerd.ttrpc.sock")))
	write(t, path("containerd.sh"), fmt.Sprintf(`set -eu
%scd %s
if [ -s containerd.pid ]; then
	pid=$(cat containerd.pid)
	kill "$pid"
	for _ in $(seq 300); do [ -e /proc/"$pid" ] || break; sleep 0.1; done
	rm -f containerd.pid
fi
[ "${1:-}" != stop ] || exit 0
setsid containerd -c containerd.toml >>containerd.log 2>&1 </dev/null &
echo $! >containerd.pid
for _ in $(seq 600); do
	! ctr -a $PWD/containerd.sock version >/dev/null 2>&1 || exit 0
	sleep 0.1
done
tail -20 containerd.log >&2
exit 1
`, setPath, dir))
	write(t, path("ctr.sh"), fmt.Sprintf(`%sif [ "$1" = run ] && [ "$2" != --help ]; then
	shift
	set -- run --runc-binary %s "$@"
fi
exec ctr -a %s "$@"
`, setPath, r.runtime(t, runtime, dir, setPath), path("containerd.sock")))
	r.shell(t, "bash "+path("containerd.sh"))
	return &engine{
		name:      c.name,
		root:      r,
		version:   r.shell(t, setPath+"containerd --version | cut -d' ' -f3"),
		caseFiles: []string{"ctr.sh"},
		archive:   true,
		prelude: program(t, dir, "engine", "exec bash "+path("ctr.sh")) +
			program(t, dir, "restart_engine", "exec bash "+path("containerd.sh")) +
			program(t, dir, "containerd_here", setPath+"exec containerd"),
		cleanUp: `
for c in $(engine container ls -q | grep "^$n" || true); do
	engine task kill -s KILL $c || true
	engine task rm -f $c || true
	engine container rm $c
done
for s in $(engine snapshot ls | awk '{print $1}' | grep "^$n" || true); do engine snapshot rm $s; done`,
		stop: func() {
			r.shell(t, "bash "+path("containerd.sh")+" stop")
			r.unmountBelow(t, dir)
			if t.Failed() {
				t.Logf("containerd: %s", tail(path("containerd.log")))
			}
		},
	}
}
