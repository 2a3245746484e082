//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hostHook returns a hook that runs a shell script on the host. $0 is a directory to write to.
func hostHook(script, dir string) specs.Hook {
	return specs.Hook{
		Path: "/bin/sh", Args: []string{"sh", "-c", script, dir},
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
	}
}

// guestHook returns a hook that runs a shell script in the container.
func guestHook(script string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin"}}
}

// TestContainerHooks: createContainer hooks are programs of the host that run in the
// container's namespaces, with the rootfs as their directory. startContainer hooks are programs
// of the container and run last.
func TestContainerHooks(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	dir := e.mkdir("hooks")
	order := func(name string) specs.Hook { return hostHook("echo "+name+` >> "$0/order"`, dir) }
	bundle := e.bundle(withScript("cat /started; tr '\\0' '\\n' </env; cat /order"), func(s *specs.Spec) {
		s.Annotations = map[string]string{"key": "value"}
		s.Process.Env = append(s.Process.Env, "MARK=of-the-process")
		s.Hooks = &specs.Hooks{
			Prestart:      []specs.Hook{order("prestart")}, //nolint:staticcheck // it runs before createRuntime
			CreateRuntime: []specs.Hook{order("createRuntime")},
			CreateContainer: []specs.Hook{
				hostHook(`cat > "$0/state"; pwd > "$0/cwd"; cp "$0/order" order; echo createContainer >> order
				for ns in mnt net pid uts; do readlink /proc/self/ns/$ns > "$0/$ns"; done`, dir),
			},
			StartContainer: []specs.Hook{
				guestHook("cat > /started; echo >> /started; pwd >> /started; echo startContainer >> /order"),
				{Path: "/bin/cp", Args: []string{"cp", "/proc/self/environ", "/env"}}, // the process's environment
			},
		}
	})
	c := e.create(bundle)
	var s status
	mustJSON(t, readFile(t, filepath.Join(dir, "state")), &s)
	if s.ID != c.id || s.Bundle != bundle || s.Status != "creating" || s.PID != 1 || s.Annotations["key"] != "value" {
		t.Errorf("createContainer: state on stdin: %+v", s)
	}
	if got := strings.TrimSpace(readFile(t, filepath.Join(dir, "cwd"))); got != filepath.Join(bundle, "rootfs") {
		t.Errorf("createContainer: run in %s", got)
	}
	for _, ns := range []string{"mnt", "net", "pid", "uts"} {
		if got := strings.TrimSpace(readFile(t, filepath.Join(dir, ns))); got != nsOf(t, c.pid, ns) {
			t.Errorf("createContainer: not run in the container's %s namespace", ns)
		}
	}
	if got := readFile(t, filepath.Join(bundle, "rootfs/order")); got != "prestart\ncreateRuntime\ncreateContainer\n" {
		t.Errorf("by create, these have run: %q", got)
	}
	e.ok("start", c.id)
	c.exits(0)
	out := strings.SplitN(c.stdout.String(), "\n", 2)
	if len(out) != 2 {
		t.Fatalf("output %q", out)
	}
	mustJSON(t, out[0], &s)
	if s.ID != c.id || s.Bundle != bundle || s.Status != "created" || s.PID != 1 || s.Annotations["key"] != "value" {
		t.Errorf("startContainer: state on stdin: %+v", s)
	}
	rest := "\n" + out[1]
	for _, line := range []string{"/", "MARK=of-the-process", "HOME=/root", "PATH=/bin:/sbin", "createRuntime\ncreateContainer\nstartContainer"} {
		if !strings.Contains(rest, "\n"+line+"\n") {
			t.Errorf("startContainer: %q is missing in %q", line, rest)
		}
	}
	e.ok("delete", c.id)
}

// TestHookMounts: what hooks mount in the rootfs before the container enters it is visible to
// its process and to nobody else.
func TestHookMounts(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	dir := e.mkdir("hooks")
	bundle := e.bundle()
	rootfs := filepath.Join(bundle, "rootfs")
	spec := defaultSpec()
	spec.Process.Args = []string{"cat", "/entered", "/within"}
	spec.Hooks = &specs.Hooks{
		CreateRuntime: []specs.Hook{hostHook(`pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
			echo entered > "$0/a" && touch `+rootfs+`/entered && nsenter -m -t $pid mount --bind "$0/a" `+rootfs+`/entered`, dir)},
		CreateContainer: []specs.Hook{hostHook(`echo within > "$0/b" && touch ./within && mount --bind "$0/b" ./within`, dir)},
	}
	writeSpec(t, bundle, spec)
	c := e.createStarted(bundle)
	c.exits(0)
	if got := c.stdout.String(); got != "entered\nwithin\n" {
		t.Errorf("the container read %q", got)
	}
	for _, name := range []string{"entered", "within"} {
		if got := readFile(t, filepath.Join(rootfs, name)); got != "" {
			t.Errorf("%s on the host holds %q", name, got)
		}
	}
	e.ok("delete", c.id)
}

// TestHookMountsAreHarmless: what hooks mount below the rootfs has in the vmm's namespace the
// flags of the rest of the share. What is mounted later does not appear there, even if a hook's
// process still shares its mounts.
func TestHookMountsAreHarmless(t *testing.T) {
	needVM(t)
	t.Parallel()
	for name, bundle := range map[string]func(*env, specOption) string{
		"plain": func(e *env, hook specOption) string { return e.bundle(withArgs("sleep", "1000"), hook) },
		"user namespace": func(e *env, hook specOption) string {
			return e.mappedBundle(withArgs("sleep", "1000"), withUserNS(""), hook)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			hookMountsAreHarmless(e, func(hook specOption) string { return bundle(e, hook) })
		})
	}
}

func hookMountsAreHarmless(e *env, bundleWith func(specOption) string) {
	t := e.t
	t.Helper()
	const stays = "1000001" // seconds
	bundle := bundleWith(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{hostHook(`mkdir -p hooked late
			mount -t tmpfs -o size=1m husk-hooked hooked && mknod -m 666 hooked/node c 1 3 && echo text > hooked/file
			mkfifo up
			unshare -m --propagation unchanged sh -c "echo > up; exec sleep `+stays+`" </dev/null >/dev/null 2>&1 &
			read x < up`, "")}}
	})
	c := e.createStarted(bundle)
	if r := c.exec("cat", "/hooked/file").is(0); r.stdout != "text\n" {
		t.Errorf("the container read %q", r.stdout)
	}
	var inNamespace int
	eventually(t, "the hook's process is there", testTimeout, func() bool {
		for pid := range e.processes() {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if string(cmdline) == "sleep\x00"+stays+"\x00" {
				inNamespace = pid
			}
		}
		return inNamespace != 0
	})
	late := filepath.Join(bundle, "rootfs/late")
	mount := exec.Command("nsenter", "-m", "-t", strconv.Itoa(inNamespace), "mount", "-t", "tmpfs", "-o", "size=1m", "husk-late", late)
	if out, err := mount.CombinedOutput(); err != nil {
		t.Fatalf("mount where the hook's process is: %v: %s", err, out)
	}
	vmm := e.vmms()[0]
	mounts := readFile(t, fmt.Sprintf("/proc/%d/mountinfo", vmm))
	if !strings.Contains(mounts, "/hooked ") {
		t.Errorf("the vmm lacks what the hook has mounted:\n%s", mounts)
	}
	harmlessMounts(t, vmm)
	attempts(t, vmm, []attempt{
		{"open a hook's device node", try(unix.SYS_OPENAT, shareFD(t, vmm), "rootfs/hooked/node", unix.O_RDWR), unix.EACCES},
	})
	if strings.Contains(mounts, "/late ") {
		t.Errorf("the vmm has what was mounted later:\n%s", mounts)
	}
	c.stop()
}

func TestCreateContainerHookFails(t *testing.T) {
	t.Parallel()
	one := 1
	for name, tc := range map[string]struct {
		bad  specs.Hook
		want []string
	}{
		"fails":   {hostHook("echo said; echo why >&2; exit 3", ""), []string{"hook #1: ", `exit status 3, stdout: said`, `stderr: why`}},
		"late":    {specs.Hook{Path: "/bin/sleep", Args: []string{"sleep", "300"}, Timeout: &one}, []string{"hook #1: hook ran past specified timeout of 1.0s"}},
		"missing": {specs.Hook{Path: "/no/such/hook"}, []string{"hook #1: ", "/no/such/hook: no such file or directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			good := hostHook("exit 0", "")
			bundle := e.bundle(func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{good, tc.bad, good}} })
			id := e.id()
			r := e.do("create", "--bundle", bundle, id).is(1)
			for _, want := range append(tc.want, runtimeName+" create failed: unable to start container process: error during container init: ") {
				if !strings.Contains(r.stderr, want) {
					t.Errorf("%q is not in stderr %q", want, r.stderr)
				}
			}
			e.do("state", id).fails(1, missing)
		})
	}
}

// TestStartContainerHookFails: the process never runs, and the container is in all else like
// one that has ended.
func TestStartContainerHookFails(t *testing.T) {
	t.Parallel()
	one := 1
	for name, tc := range map[string]struct {
		bad  specs.Hook
		want string
	}{
		"fails":   {guestHook("echo said; echo why >&2; exit 3"), "exit status 3, stdout: said"},
		"late":    {specs.Hook{Path: "/bin/sleep", Args: []string{"sleep", "300"}, Timeout: &one}, "hook #1: hook ran past specified timeout of 1.0s"},
		"missing": {specs.Hook{Path: "/no/such/hook"}, "/no/such/hook: no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			dir := e.mkdir("hooks")
			bundle := e.bundle(withArgs("echo", "the process runs"), func(s *specs.Spec) {
				s.Hooks = &specs.Hooks{
					StartContainer: []specs.Hook{guestHook("exit 0"), tc.bad},
					Poststop:       []specs.Hook{hostHook(`touch "$0/poststop"`, dir)},
				}
			})
			c := e.create(bundle)
			r := e.do("start", c.id)
			c.exits(1)
			told := c.stderr.String() // runc writes it there, and its start reports nothing
			if isVM {
				told = r.is(1).stderr
				r.oneLogLine(strings.TrimSpace(r.stderr))
			}
			if !strings.Contains(told, "hook #1: ") || !strings.Contains(told, tc.want) {
				t.Errorf("%q is not in %q", tc.want, told)
			}
			if got := c.stdout.String(); got != "" {
				t.Errorf("output %q", got)
			}
			if got := c.status(); got != "stopped" {
				t.Errorf("status %s", got)
			}
			e.ok("delete", c.id)
			readFile(t, filepath.Join(dir, "poststop"))
		})
	}
}

// TestKillInStartContainerHook: a hook that never ends blocks start and nothing else.
func TestKillInStartContainerHook(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	bundle := e.bundle(withArgs("true"), func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{guestHook("touch /begun; exec sleep 1000")}}
	})
	c := e.create(bundle)
	start := e.start(call{}, "start", c.id)
	eventually(t, "the hook runs", testTimeout, func() bool {
		_, err := os.Stat(filepath.Join(bundle, "rootfs/begun"))
		return err == nil
	})
	e.ok("kill", c.id, "KILL")
	c.exits(137)
	start.wait()
	e.ok("delete", c.id)
}

// TestKillCreateInHook: if a cli is killed while a createContainer hook runs, the hook and the
// container end too.
func TestKillCreateInHook(t *testing.T) {
	needVM(t) // runc leaves its half-made container
	t.Parallel()
	e := newEnv(t)
	dir := e.mkdir("hooks")
	id := e.id()
	create := e.start(call{}, "create", "--bundle", e.bundle(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{hostHook(`touch "$0/begun"; exec sleep 1000`, dir)}}
	}), id)
	eventually(t, "the hook runs", testTimeout, func() bool {
		_, err := os.Stat(filepath.Join(dir, "begun"))
		return err == nil
	})
	if err := create.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-create.done
	eventually(t, "the half-made container is stopped or gone", testTimeout, func() bool {
		r := e.do("state", id)
		return r.code != 0 || strings.Contains(r.stdout, `"status": "stopped"`)
	})
	e.ok("delete", "--force", id)
	e.do("state", id).fails(1, missing)
}
