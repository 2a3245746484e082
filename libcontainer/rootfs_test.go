package libcontainer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func addMount(s *specs.Spec, src, dest, fstype string, options ...string) {
	s.Mounts = append(s.Mounts, specs.Mount{Source: src, Destination: dest, Type: fstype, Options: options})
}

func mkdir(t testing.TB, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func symlink(t testing.TB, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

func TestRootfs(t *testing.T) {
	rootfs := newRootfs(t)
	out := mustRun(t, newSpec(rootfs, "ls /; hostname; touch /made"))
	equal(t, "output", out, "bin\ndev\netc\nproc\nroot\nsys\ntmp\nbox\n")
	if _, err := os.Stat(filepath.Join(rootfs, "made")); err != nil {
		t.Error(err)
	}
	// No mount of the caller may be visible in the container.
	for line := range strings.Lines(mustRun(t, newSpec(rootfs, "cat /proc/self/mountinfo"))) {
		f := strings.Fields(line)
		if f[4] != "/" && !strings.HasPrefix(f[4], "/dev") && !strings.HasPrefix(f[4], "/proc") && !strings.HasPrefix(f[4], "/sys") {
			t.Errorf("mount %s", line)
		}
	}
}

func TestReadonlyRootfs(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "touch /made || echo refused; touch /dev/shm/x && mkdir /dev/d && echo ok")
	spec.Root.Readonly = true
	o := run(t, spec)
	equal(t, "stdout", o.out, "refused\nok\n")
	contains(t, "stderr", o.err, "Read-only file system")
}

func TestMaskedAndReadonlyPaths(t *testing.T) {
	rootfs := newRootfs(t)
	mkdir(t, filepath.Join(rootfs, "secret"))
	write(t, filepath.Join(rootfs, "secret/file"), "x")
	mkdir(t, filepath.Join(rootfs, "other"))
	write(t, filepath.Join(rootfs, "other/file"), "x")
	write(t, filepath.Join(rootfs, "etc/key"), "x")
	write(t, filepath.Join(rootfs, "etc/conf"), "x")
	spec := newSpec(rootfs, `ls /secret; cat /etc/key; stat -c %t:%T /etc/key; cat /proc/kcore; cat /etc/conf
		echo y >/etc/conf; touch /secret/new; touch /other/new; ls /other; echo 1 >/proc/sys/net/ipv4/ip_forward; touch /keep/inner/x && echo inner
		stat -c %d /secret /other | uniq | wc -l; grep -c " /secret " /proc/self/mounts; grep -c " /etc/key " /proc/self/mounts`)
	inner := mkdir(t, filepath.Join(t.TempDir(), "inner"))
	addMount(spec, inner, "/keep/inner", "bind", "rbind")
	spec.Linux.MaskedPaths = []string{"/secret", "/etc/key", "/proc/kcore", "/etc/passwd/none", "/none", "/other", "/secret", "/etc/key"}
	spec.Linux.ReadonlyPaths = []string{"/etc/conf", "/proc/sys", "/keep", "/none"}
	o := run(t, spec)
	equal(t, "stdout", o.out, "1:3\nxinner\n1\n1\n1\n")
	for _, file := range []string{"/etc/conf", "/secret/new", "/other/new", "/proc/sys/net/ipv4/ip_forward"} {
		contains(t, "stderr", o.err, file+": Read-only file system")
	}
}

// TestForgedNull: a file of the image at /dev/null is not used as the mask of hidden files.
func TestForgedNull(t *testing.T) {
	rootfs := newRootfs(t)
	write(t, filepath.Join(rootfs, "forged"), "forged")
	spec := newSpec(rootfs, "true")
	dev := mkdir(t, filepath.Join(rootfs, "otherdev"))
	symlink(t, "/forged", filepath.Join(dev, "null"))
	addMount(spec, dev, "/dev", "bind", "rbind")
	_, err := Create(&Config{ID: "x", Spec: spec})
	if err == nil || !strings.HasPrefix(err.Error(), `error during container init: mask "/proc/`) ||
		!strings.HasSuffix(err.Error(), "/dev/null of the container is not the null device") {
		t.Errorf("error: %v", err)
	}
}

// TestLinksStayInside: links of the image do not lead a mount, a device or a new directory out
// of the rootfs.
func TestLinksStayInside(t *testing.T) {
	rootfs := newRootfs(t)
	outside := t.TempDir()
	mark := filepath.Join(outside, "file")
	write(t, mark, "outside")
	up := strings.Repeat("../", 20)
	symlink(t, outside, filepath.Join(rootfs, "abs"))
	symlink(t, up+outside, filepath.Join(rootfs, "rel"))
	symlink(t, mark, filepath.Join(rootfs, "absfile"))
	symlink(t, "/dangling/dir", filepath.Join(rootfs, "dangle"))
	symlink(t, "loop", filepath.Join(rootfs, "loop"))
	symlink(t, up+outside+"/devdir", filepath.Join(rootfs, "devlink"))
	src := t.TempDir()
	write(t, filepath.Join(src, "hello"), "hello")

	spec := newSpec(rootfs, "cat /abs/a/hello /rel/b/hello /absfile /dangle/c/hello; ls /devlink; stat -c %F /devlink/n")
	addMount(spec, src, "/abs/a", "bind", "bind")
	addMount(spec, src, "/rel/b", "bind", "bind")
	addMount(spec, filepath.Join(src, "hello"), "/absfile", "bind", "bind")
	addMount(spec, src, "/dangle/c", "bind", "bind")
	addMount(spec, "tmpfs", "/abs/t", "tmpfs")
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/devlink/n", Type: "c", Major: 1, Minor: 3}}
	equal(t, "output", mustRun(t, spec), "hellohellohellohellon\ncharacter special file\n")
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 || read(t, mark) != "outside" {
		t.Errorf("outside was touched: %v %v", entries, err)
	}
	spec = newSpec(rootfs, "true")
	addMount(spec, src, "/loop/x", "bind", "bind")
	_, err = Create(&Config{ID: "x", Spec: spec})
	want := `error during container init: error mounting "` + src + `" to rootfs at "/loop/x": mkdir /loop: too many levels of symbolic links`
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestProcMustBeADirectory(t *testing.T) {
	rootfs := newRootfs(t)
	if err := os.Remove(filepath.Join(rootfs, "proc")); err != nil {
		t.Fatal(err)
	}
	symlink(t, "/tmp", filepath.Join(rootfs, "proc"))
	_, err := Create(&Config{ID: "x", Spec: newSpec(rootfs, "true")})
	want := `error during container init: error mounting "proc" to rootfs at "/proc": filesystem "proc" must be mounted on ordinary directory`
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestLinkIntoProc(t *testing.T) {
	rootfs := newRootfs(t)
	symlink(t, "/proc/self/attr", filepath.Join(rootfs, "innocent"))
	spec := newSpec(rootfs, "true")
	addMount(spec, "tmpfs", "/innocent", "tmpfs")
	_, err := Create(&Config{ID: "x", Spec: spec})
	if err == nil || !strings.HasPrefix(err.Error(), `error during container init: error mounting "tmpfs" to rootfs at "/innocent": `) {
		t.Errorf("error: %v", err)
	}
}

func TestBinds(t *testing.T) {
	rootfs := newRootfs(t)
	src := t.TempDir()
	write(t, filepath.Join(src, "one"), "one\n")
	write(t, filepath.Join(src, "two"), "two\n")
	spec := newSpec(rootfs, `cat /mnt/one /mnt/file; ls /mnt /ro; echo changed >/mnt/file; touch /ro/x || echo ro
		echo y >/rofile || echo rofile; touch /rw/made; grep -E ' /ne ' /proc/self/mountinfo | grep -o 'nosuid,nodev,noexec,noatime'`)
	addMount(spec, filepath.Join(src, "one"), "/mnt/one", "bind", "bind")
	addMount(spec, filepath.Join(src, "two"), "/mnt/file", "bind", "rbind", "rprivate")
	addMount(spec, src, "/ro", "bind", "rbind", "ro")
	addMount(spec, src, "/rw", "", "rbind", "rw", "size=5m", "sync") // options of filesystems mean nothing for a bind
	addMount(spec, filepath.Join(src, "one"), "/rofile", "bind", "bind", "ro")
	addMount(spec, src, "/ne", "bind", "bind", "nosuid", "nodev", "noexec", "noatime")
	o := run(t, spec)
	equal(t, "stdout", o.out, "one\ntwo\n/mnt:\nfile\none\n\n/ro:\none\ntwo\nro\nrofile\nnosuid,nodev,noexec,noatime\n")
	equal(t, "file changed inside", read(t, filepath.Join(src, "two")), "changed\n")
	if _, err := os.Stat(filepath.Join(src, "made")); err != nil {
		t.Error(err)
	}
}

// TestRecursiveBinds has a tmpfs below a bound directory; the mount before it in the container
// makes it.
func TestRecursiveBinds(t *testing.T) {
	rootfs := newRootfs(t)
	for _, tt := range []struct{ options, want string }{
		{"bind", "none\n"},
		{"rbind", "inner\nwritten\n"},
		{"rbind,ro", "inner\nwritten\n"},
		{"rbind,rro", "inner\nrefused\n"},
	} {
		t.Run(tt.options, func(t *testing.T) {
			// A new mount namespace stands for a host with such mounts.
			got := inMountNamespace(t, func(dir string) output {
				spec := newSpec(rootfs, "ls /v/sub | grep . || { echo none; exit 0; }; touch /v/sub/new 2>/dev/null && echo written || echo refused")
				addMount(spec, dir, "/v", "bind", strings.Split(tt.options, ",")...)
				return run(t, spec)
			})
			equal(t, tt.options, got.out, tt.want)
		})
	}
}

// inMountNamespace runs f on a thread in a new mount namespace, in which dir/sub is a tmpfs
// that holds the file inner.
func inMountNamespace(t *testing.T, f func(dir string) output) output {
	t.Helper()
	dir := t.TempDir()
	sub := mkdir(t, filepath.Join(dir, "sub"))
	var o output
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", sub, "tmpfs", 0, ""); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(sub, "inner"), nil, 0o644); err != nil {
			return err
		}
		o = f(dir)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// propagation returns the optional fields of the last mount at a mount point.
func propagation(mountinfo, point string) string {
	fields := ""
	for line := range strings.Lines(mountinfo) {
		before, _, _ := strings.Cut(line, " - ")
		if f := strings.Fields(before); f[4] == point {
			fields = strings.Join(f[6:], " ")
		}
	}
	return fields
}

func TestPropagation(t *testing.T) {
	rootfs := newRootfs(t)
	for _, noPivot := range []bool{false, true} {
		mountinfo := func(spec *specs.Spec) string {
			c := start(t, &Config{Spec: spec, NoPivot: noPivot})
			o := collect(t, c.Init())
			if o.code != 0 {
				t.Fatalf("%+v", o)
			}
			return o.out
		}
		src := t.TempDir()
		spec := newSpec(rootfs, "cat /proc/self/mountinfo")
		addMount(spec, src, "/shared", "bind", "bind", "private", "shared")
		addMount(spec, src, "/private", "bind", "bind", "rprivate")
		addMount(spec, src, "/unbindable", "bind", "rbind", "runbindable")
		info := mountinfo(spec)
		contains(t, "shared bind", propagation(info, "/shared"), "shared:")
		equal(t, "private bind", propagation(info, "/private"), "")
		equal(t, "unbindable bind", propagation(info, "/unbindable"), "unbindable")
		for option, want := range map[string]string{
			"": "", "private": "", "rprivate": "", "shared": "shared:", "rshared": "shared:", "unbindable": "unbindable",
		} {
			spec := newSpec(rootfs, "cat /proc/self/mountinfo")
			spec.Linux.RootfsPropagation = option
			got := propagation(mountinfo(spec), "/")
			if !strings.HasPrefix(got, want) || want == "" && strings.Contains(got, "shared:") {
				t.Errorf("rootfsPropagation=%s, no pivot %v: %q, want %q", option, noPivot, got, want)
			}
		}
	}
}

func TestTmpfs(t *testing.T) {
	rootfs := newRootfs(t)
	if err := os.Mkdir(filepath.Join(rootfs, "kept"), 0o711); err != nil {
		t.Fatal(err)
	}
	data := mkdir(t, filepath.Join(rootfs, "data/sub"))
	write(t, filepath.Join(data, "f"), "copied")
	symlink(t, "sub/f", filepath.Join(rootfs, "data/link"))
	if err := os.Chown(filepath.Join(data, "f"), 7, 8); err != nil {
		t.Fatal(err)
	}
	spec := newSpec(rootfs, `stat -c %a /sized /kept /new /data
		grep ' /sized ' /proc/self/mountinfo | grep -o size=4096k
		cat /data/link; stat -c %u:%g:%a /data/sub/f; touch /data/x; ls /ro; touch /ro/x || echo refused`)
	addMount(spec, "tmpfs", "/sized", "tmpfs", "size=4m", "mode=700")
	addMount(spec, "tmpfs", "/kept", "tmpfs")
	addMount(spec, "tmpfs", "/new/deep", "tmpfs")
	addMount(spec, "tmpfs", "/data", "tmpfs", "tmpcopyup")
	addMount(spec, "tmpfs", "/ro", "tmpfs", "ro")
	addMount(spec, data, "/ro/bind", "bind", "bind")
	o := run(t, spec)
	equal(t, "stdout", o.out, "700\n711\n755\n755\nsize=4096k\ncopied7:8:644\nbind\nrefused\n")
	if _, err := os.Stat(filepath.Join(rootfs, "data/x")); err == nil {
		t.Error("a write to the tmpfs reached what it covers")
	}
}

func TestDevices(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, `cd /dev; for d in null zero full random urandom tty n b p; do stat -c '%n %F %t:%T %a %u:%g' $d; done
		for l in ptmx fd stdin stdout stderr; do readlink $l; done; head -c 3 /dev/zero | wc -c; echo x >/dev/null; cat n; ls console`)
	spec.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/n", Type: "c", Major: 1, Minor: 3, FileMode: ptr(os.FileMode(0o640)), UID: ptr(uint32(3)), GID: ptr(uint32(4))},
		{Path: "/dev/b", Type: "b", Major: 7, Minor: 99},
		{Path: "/dev/p", Type: "p", FileMode: ptr(os.FileMode(0o600))},
		{Path: "/dev/ptmx", Type: "c", Major: 5, Minor: 2},
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: ptr(os.FileMode(0o662))},
	}
	o := run(t, spec)
	equal(t, "stdout", o.out, `null character special file 1:3 662 0:0
zero character special file 1:5 666 0:0
full character special file 1:7 666 0:0
random character special file 1:8 666 0:0
urandom character special file 1:9 666 0:0
tty character special file 5:0 666 0:0
n character special file 1:3 640 3:4
b block special file 7:63 666 0:0
p fifo 0:0 600 0:0
pts/ptmx
/proc/self/fd
/proc/self/fd/0
/proc/self/fd/1
/proc/self/fd/2
3
`)
	contains(t, "stderr", o.err, "console: No such file")
}

func TestDevOfTheSpec(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "ls /dev | wc -l; test -c /dev/null && echo null")
	spec.Mounts = spec.Mounts[:1]
	spec.Linux.MaskedPaths = nil
	empty := t.TempDir()
	addMount(spec, empty, "/dev", "bind", "rbind")
	equal(t, "bound /dev", run(t, spec).out, "0\n")
	if entries, err := os.ReadDir(empty); err != nil || len(entries) != 0 {
		t.Errorf("the bound /dev was changed: %v %v", entries, err)
	}
}

func TestOtherFileInPlaceOfDevice(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "true")
	spec.Mounts = spec.Mounts[:1]
	write(t, filepath.Join(rootfs, "dev/null"), "")
	_, err := Create(&Config{ID: "x", Spec: spec})
	want := "error during container init: device /dev/null: a file that is another one is in its place"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestSysctlAndNetwork(t *testing.T) {
	rootfs := newRootfs(t)
	spec := newSpec(rootfs, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni /proc/sys/net/ipv4/conf/lo/rp_filter; ip -o link | grep -c .; ip -o link | grep -o LOOPBACK,UP; hostname; cat /proc/sys/kernel/domainname")
	spec.Domainname = "example"
	spec.Linux.Sysctl = map[string]string{
		"net.ipv4.ip_forward": "1", "kernel.shmmni": "1234", "net/ipv4/conf/lo/rp_filter": "2",
	}
	before := read(t, "/proc/sys/kernel/shmmni")
	contains(t, "output", mustRun(t, spec), "1\n1234\n2\n")
	out := mustRun(t, spec)
	contains(t, "output", out, "LOOPBACK,UP\nbox\nexample\n")
	equal(t, "caller's value", read(t, "/proc/sys/kernel/shmmni"), before)
}

func TestHooks(t *testing.T) {
	rootfs := newRootfs(t)
	host := t.TempDir()
	spec := newSpec(rootfs, "cat /from-create /from-start")
	spec.Annotations = map[string]string{"k": "v"}
	hook := func(script string) specs.Hook {
		return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin", "X=y"}}
	}
	spec.Hooks = &specs.Hooks{
		// The hook sees paths of the caller and namespaces of the container.
		CreateContainer: []specs.Hook{hook("cat >" + rootfs + "/from-create; busybox hostname >" + host + "/name; echo >>" + rootfs + "/from-create")},
		StartContainer:  []specs.Hook{hook("cat >/from-start; echo $X >>/from-start")},
	}
	c := create(t, &Config{ID: "hooked", Spec: spec, Bundle: "/bundle"})
	equal(t, "hook's hostname", read(t, host+"/name"), "box\n")
	if _, err := os.Stat(rootfs + "/from-start"); err == nil {
		t.Error("the startContainer hook ran at create")
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	state := func(status string) string {
		return `{"ociVersion":"` + specs.Version + `","id":"hooked","status":"` + status + `","pid":1,"bundle":"/bundle","annotations":{"k":"v"}}`
	}
	equal(t, "states", collect(t, c.Init()).out, state("creating")+"\n"+state("created")+"y\n")

	spec.Hooks.CreateContainer = []specs.Hook{hook("echo why; exit 4")}
	_, err := Create(&Config{ID: "x", Spec: spec})
	want := "error during container init: error running createContainer hook #0: exit status 4, stdout: why\n, stderr: "
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	slow := hook("exec sleep 1000")
	slow.Timeout = ptr(1)
	spec.Hooks.CreateContainer, spec.Hooks.StartContainer = nil, []specs.Hook{slow}
	c = create(t, &Config{ID: "x", Spec: spec})
	err = c.Start()
	want = "error running startContainer hook #0: hook ran past specified timeout of 1.0s"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	// A hook without an environment gets that of the process, with HOME.
	spec.Process.Env = []string{"PATH=/bin", "FOO=bar"}
	spec.Hooks.StartContainer = []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", `echo "$FOO $HOME" >/env`}}}
	spec.Process.Args = []string{"cat", "/env"}
	c = create(t, &Config{ID: "x", Spec: spec})
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	equal(t, "environment", collect(t, c.Init()).out, "bar /root\n")
}
