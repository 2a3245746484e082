package libcontainer

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestErrorTexts: engines match these texts.
func TestErrorTexts(t *testing.T) {
	rootfs := newRootfs(t)
	root, name := cgroup2(t)
	bind := func(src, dest string) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Source: src, Destination: dest, Type: "bind", Options: []string{"bind"}})
		}
	}
	args := func(a ...string) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Process.Args = a }
	}
	for _, tt := range []struct {
		change func(*specs.Spec)
		want   string
	}{
		{args("nosuch"), `exec: "nosuch": executable file not found in $PATH`},
		{args(""), `exec: "": executable file not found in $PATH`},
		{args("/no/such"), `exec: "/no/such": stat /no/such: no such file or directory`},
		{args("/etc/passwd"), `exec: "/etc/passwd": permission denied`},
		{args("/etc"), `exec: "/etc": is a directory: permission denied`},
		{args("passwd"), `exec: "passwd": executable file not found in $PATH`},
		{args(), "args must not be empty"},
		{func(s *specs.Spec) { s.Process.Env = nil }, `exec: "sh": executable file not found in $PATH`},
		{func(s *specs.Spec) { s.Process.Cwd = "/etc/passwd" }, "error during container init: mkdir /etc/passwd: not a directory"},
		{func(s *specs.Spec) { s.Process.Cwd = "x" }, `cwd "x" must be an absolute path`},
		{bind("/nosuchsrc", "/x"), `error during container init: error mounting "/nosuchsrc" to rootfs at "/x": stat /nosuchsrc: no such file or directory`},
		{bind("/tmp", "/bin/sh"), `error during container init: error mounting "/tmp" to rootfs at "/bin/sh": mount /tmp:/bin/sh, flags: 0x1000: not a directory`},
		{bind("/etc/passwd", "/etc"), `error during container init: error mounting "/etc/passwd" to rootfs at "/etc": mount /etc/passwd:/etc, flags: 0x1000: not a directory`},
		{bind("/tmp", "/etc/passwd/x"), `error during container init: error mounting "/tmp" to rootfs at "/etc/passwd/x": mkdir /etc/passwd: not a directory`},
		{bind("/tmp", "/proc/1"), `"/proc/1" cannot be mounted because it is inside /proc`},
		{bind("/tmp", "/proc"), `error during container init: error mounting "/tmp" to rootfs at "/proc": "/proc" cannot be mounted because it is not of type proc`},
		{bind("/tmp", "/../."), `invalid mount destination "/../."`},
		{func(s *specs.Spec) { s.Root.Path = "/nosuchroot" }, "invalid rootfs: stat /nosuchroot: no such file or directory"},
		{
			func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "nosuchfs", Source: "y"})
			},
			`error during container init: error mounting "y" to rootfs at "/x": mount y:/x, flags: 0x0: no such device`,
		},
		{
			func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_NOSUCH"} },
			`unknown capability "CAP_NOSUCH"`,
		},
		{
			func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOSUCH"}} },
			"invalid rlimit type: RLIMIT_NOSUCH",
		},
		{
			func(s *specs.Spec) {
				s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}}
			},
			"error setting rlimit type 7: invalid argument",
		},
		{
			func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"vm.swappiness": "1"} },
			`sysctl "vm.swappiness" is not in a separate kernel namespace`,
		},
		{
			func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.no.such": "1"} },
			"error during container init: open /proc/sys/net/no/such: no such file or directory",
		},
		{
			func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "y"}} },
			`invalid type "y" of device /dev/x`,
		},
		{func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{} }, "linux.seccomp is not supported"},
		{
			func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, nsOf("user")) },
			"user namespaces enabled, but no uid mappings found",
		},
		{
			func(s *specs.Spec) { s.Linux.Namespaces[4].Path = "/proc/self/ns/mnt" },
			"joining a mount namespace by path is not supported",
		},
		{
			func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/nosuchns" },
			"start init stage: open namespace /nosuchns: no such file or directory",
		},
		{
			func(s *specs.Spec) {
				s.Linux.Resources = &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{}}}
			},
			"linux.resources.hugepageLimits is not supported",
		},
	} {
		t.Run(tt.want, func(t *testing.T) {
			spec := newSpec(rootfs, "true")
			tt.change(spec)
			c, err := Create(&Config{ID: "x", Spec: spec, CgroupRoot: root, CgroupPath: name})
			if err == nil {
				destroy(t, c)
				t.Errorf("no error, want %s", tt.want)
				return
			}
			equal(t, "error", err.Error(), tt.want)
			if _, err := os.Stat(root + name); err == nil {
				t.Errorf("%s: the cgroup is left", tt.want)
			}
		})
	}
}

func TestExecErrorTexts(t *testing.T) {
	rootfs := newRootfs(t)
	c := start(t, &Config{Spec: newSpec(rootfs, "exec sleep 1000")})
	for _, tt := range []struct {
		args []string
		cwd  string
		want string
	}{
		{[]string{"/no/such"}, "/", `exec: "/no/such": stat /no/such: no such file or directory`},
		{[]string{"/etc/passwd"}, "/", `exec: "/etc/passwd": permission denied`},
		{[]string{"nosuch"}, "/", `exec: "nosuch": executable file not found in $PATH`},
		{[]string{"true"}, "/nodir", `chdir to cwd ("/nodir") set in config.json failed: no such file or directory`},
		{[]string{"true"}, "/etc/passwd", `chdir to cwd ("/etc/passwd") set in config.json failed: not a directory`},
		{nil, "/", "args must not be empty"},
	} {
		t.Run(tt.cwd, func(t *testing.T) {
			p := newProcess("")
			p.Args, p.Cwd = tt.args, tt.cwd
			_, err := c.Exec(p, false)
			if err == nil {
				t.Errorf("no error, want %s", tt.want)
				return
			}
			equal(t, "error", err.Error(), tt.want)
		})
	}
}

func TestNotAProgram(t *testing.T) {
	rootfs := newRootfs(t)
	file := filepath.Join(rootfs, "bin/garbage")
	write(t, file, "\x01\x02garbage")
	if err := os.Chmod(file, 0o755); err != nil {
		t.Fatal(err)
	}
	spec := newSpec(rootfs, "")
	spec.Process.Args = []string{"/bin/garbage"}
	c := create(t, &Config{Spec: spec})
	err := c.Start()
	if err == nil || err.Error() != "exec /bin/garbage: exec format error" {
		t.Errorf("start: %v", err)
	}
	equal(t, "exit code", wait(t, c.Init()).Code, 1)
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a", "b", "a/tool"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tool := filepath.Join(dir, "b/tool")
	if err := os.WriteFile(tool, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(dir, "b"))
	for _, tt := range []struct{ name, path, want, err string }{
		{"tool", dir + "/a:" + dir + "/b", tool, ""},
		{"tool", "/no:" + dir + "/b/", dir + "/b//tool", ""},
		{"tool", "", "", `exec: "tool": executable file not found in $PATH`},
		{"tool", ":/no", "", `exec: "tool": cannot run executable found relative to current directory`},
		{"tool", ".", "", `exec: "tool": cannot run executable found relative to current directory`},
		{"./tool", "", "./tool", ""},
		{"..", dir, "", `exec: "..": executable file not found in $PATH`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := lookPath(tt.name, []string{"X=1", "PATH=" + tt.path})
			text := ""
			if err != nil {
				text = err.Error()
			}
			if got != tt.want || text != tt.err {
				t.Errorf("%s in %q: %q, %q; want %q, %q", tt.name, tt.path, got, text, tt.want, tt.err)
			}
		})
	}
}
