//go:build integration

package engines

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// engine is one container engine, its containers run by one runtime.
type engine struct {
	name, version string
	caseFiles     []string
	// prelude puts the program engine into PATH, and restart_engine where there is
	// a daemon.
	prelude string
	// cleanUp removes what a case made: the shell has its $n.
	cleanUp string
	stop    func()
}

// runtimeArgs is how an engine calls a runtime: husk needs the settings of the
// test run.
func runtimeArgs(t *testing.T, runtime, dir string) string {
	t.Helper()
	if runtime != "husk" {
		path, err := exec.LookPath(runtime)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	path := filepath.Join(dir, "husk")
	script := fmt.Sprintf("#!/bin/sh\nexec %s --config %s \"$@\"\n", huskPath, settings)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// daemon is a background process with its log.
type daemon struct {
	cmd *exec.Cmd
	log string
}

// startDaemon returns when the socket answers.
func startDaemon(log, socket string, args ...string) (*daemon, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	os.Remove(socket)
	d := &daemon{cmd: exec.Command(args[0], args[1:]...), log: log}
	d.cmd.Stdout, d.cmd.Stderr = out, out
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = d.cmd.Wait()
		close(ended)
	}()
	deadline := time.After(time.Minute)
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return d, nil
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("%s ended: %s", args[0], tail(log))
		case <-deadline:
			return nil, fmt.Errorf("%s does not answer on %s: %s", args[0], socket, tail(log))
		case <-time.After(50 * time.Millisecond): // nobody tells when it listens
		}
	}
}

func tail(log string) string {
	text, _ := os.ReadFile(log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// startDocker starts a containerd and a dockerd whose default runtime is runtime.
func startDocker(t *testing.T, runtime string) *engine {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
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
`, runtimeArgs(t, runtime, dir)))
	// A shell starts and ends dockerd, so that a case can do it, too.
	write(t, path("dockerd.sh"), fmt.Sprintf(`set -eu
cd %s
if [ -s dockerd.pid ]; then
	pid=$(cat dockerd.pid)
	kill "$pid"
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
`, dir))
	containerd, err := startDaemon(path("containerd.log"), path("containerd.sock"), "containerd", "-c", path("containerd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	shell(t, "bash "+path("dockerd.sh"))
	return &engine{
		name:      "docker",
		version:   strings.TrimSpace(shell(t, "/usr/bin/docker -H unix://"+path("docker.sock")+" version -f '{{.Server.Version}}'")),
		caseFiles: []string{"common.sh", "docker.sh"},
		prelude: program(t, dir, "engine", "exec /usr/bin/docker -H unix://"+path("docker.sock")) +
			program(t, dir, "restart_engine", "exec bash "+path("dockerd.sh")),
		cleanUp: `
engine ps -aq --filter name=$n | xargs -r engine rm -fv
engine network ls -q --filter name=$n | xargs -r engine network rm
engine volume ls -q --filter name=$n | xargs -r engine volume rm
engine image ls -q --filter reference="$n*" | xargs -r engine image rm -f`,
		stop: func() {
			t.Log(shell(t, "bash "+path("dockerd.sh")+" stop"))
			_ = containerd.cmd.Process.Signal(os.Interrupt)
			unmountBelow(t, dir)
			if t.Failed() {
				t.Logf("dockerd: %s", tail(path("dockerd.log")))
			}
		},
	}
}

// podman has no daemon, but files that keep it to itself.
func startPodman(t *testing.T, runtime string) *engine {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
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
`, path("net"), path("tmp"), path("root/libpod"), path("volumes"), runtimeArgs(t, runtime, dir)))
	write(t, path("storage.conf"), fmt.Sprintf("[storage]\ndriver = \"overlay\"\nrunroot = %q\ngraphroot = %q\n", path("run"), path("root")))
	write(t, path("policy.json"), `{"default":[{"type":"insecureAcceptAnything"}]}`)
	prelude := program(t, dir, "engine", fmt.Sprintf("export CONTAINERS_CONF=%s CONTAINERS_STORAGE_CONF=%s\nexec podman --root %s --runroot %s --cgroup-manager cgroupfs",
		path("containers.conf"), path("storage.conf"), path("root"), path("run")))
	return &engine{
		name:      "podman",
		version:   strings.TrimSpace(shell(t, "podman version -f '{{.Client.Version}}'")),
		caseFiles: []string{"common.sh", "podman.sh"},
		prelude:   prelude,
		cleanUp: `
engine pod ls -q --filter name=$n | while read -r p; do engine pod rm -f -t 0 $p; done
engine ps -aq --filter name=$n | while read -r c; do engine rm -fv -t 0 $c; done
engine network ls -q --filter name=$n | while read -r c; do engine network rm -f $c; done
engine volume ls -q --filter name=$n | while read -r c; do engine volume rm -f $c; done
engine image exists $n-img && engine image rm -f $n-img || true`,
		stop: func() { unmountBelow(t, dir) },
	}
}

// unmountBelow takes away what an engine leaves mounted in its directory.
func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	shell(t, fmt.Sprintf(`awk -v d=%s/ 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | tac | xargs -r -n 1 umount -l`, dir))
}

// program makes a command of a shell line that takes arguments, and returns the
// line that puts it into PATH.
func program(t *testing.T, dir, name, line string) string {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+line+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + bin + ":$PATH\n"
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func shell(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("bash", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}
