//go:build integration

package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/integration/injector"
)

// The tests in this file treat a vmm as taken over by its guest: they make the QEMU process of
// a running container execute system calls, and check what each returns.

// fileCaps are the capabilities that QEMU's file server always has.
const fileCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID

func withCaps(caps ...string) specOption {
	return func(s *specs.Spec) {
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	}
}

// vmmOf starts a container that waits, and returns it and the pid of its vmm.
func vmmOf(t *testing.T, options ...specOption) (*container, int) {
	t.Helper()
	e := newEnv(t)
	c := e.createStarted(e.bundle(append([]specOption{withArgs("sleep", "1000")}, options...)...))
	vmms := e.vmms()
	if len(vmms) != 1 {
		t.Fatalf("vmm processes of one container: %v", vmms)
	}
	return c, vmms[0]
}

// fdOf finds a descriptor of a process.
func fdOf(t *testing.T, pid int, what string, is func(link string, st unix.Stat_t) bool) int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		link, err := os.Readlink(path)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			continue
		}
		if is(link, st) {
			fd, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}
	}
	t.Fatalf("process %d has no descriptor of %s", pid, what)
	return -1
}

// shareFD returns the descriptor by which QEMU's file server reaches the share.
func shareFD(t *testing.T, pid int) int {
	return fdOf(t, pid, "the share", func(link string, _ unix.Stat_t) bool { return link == "/share" })
}

// argOf returns the value of a key in the vmm's command line, "" if there is none.
func argOf(t *testing.T, pid int, key string) string {
	t.Helper()
	for arg := range strings.SplitSeq(readFile(t, fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00") {
		for pair := range strings.SplitSeq(arg, ",") {
			if value, ok := strings.CutPrefix(pair, key+"="); ok {
				return value
			}
		}
	}
	return ""
}

// attempt is a call and its expected result.
type attempt struct {
	name string
	call injector.Call
	want error // nil: it succeeds
}

func try(nr int, args ...any) injector.Call { return injector.Call{Nr: nr, Args: args} }

func attempts(t *testing.T, pid int, all []attempt) {
	t.Helper()
	err := injector.Run(pid, func(i *injector.Injector) error {
		for _, a := range all {
			got, err := i.Do(a.call)
			if errors.Is(err, injector.ErrEnded) {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			if !errors.Is(err, a.want) || err == nil && a.want != nil {
				t.Errorf("%s: %d, %v; want %v", a.name, got, err, a.want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestMadVMMIsRefused: calls that a vmm may not make, but may make by mistake, fail.
func TestMadVMMIsRefused(t *testing.T) {
	needVM(t)
	t.Parallel()
	c, vmm := vmmOf(t, withCaps("CAP_CHOWN"))
	rootfs := filepath.Join(c.bundle, "rootfs")
	if err := unix.Mknod(filepath.Join(rootfs, "node"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	copyTree(t, filepath.Join(assetsDir, "rootfs/bin"), filepath.Join(rootfs, "tools"))
	share := shareFD(t, vmm)
	disk := int(unix.Mkdev(259, 0))
	abstract := binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
	abstract = append(abstract, "\x00husk"...)

	all := []attempt{
		{"the host's files by name", try(unix.SYS_OPENAT, unix.AT_FDCWD, "/etc/shadow", unix.O_RDONLY), unix.ENOENT},
		{"above the share", try(unix.SYS_OPENAT, share, "../../../etc/shadow", unix.O_RDONLY), unix.ENOENT},
		{"the root of its init", try(unix.SYS_OPENAT, unix.AT_FDCWD, "/proc/1/root/etc/shadow", unix.O_RDONLY), unix.ENOENT},
		{"files of the supervisor", try(unix.SYS_OPENAT, unix.AT_FDCWD, fmt.Sprintf("/proc/%d/fd", c.pid), unix.O_RDONLY), unix.ENOENT},
		{"a knob of the kernel", try(unix.SYS_OPENAT, unix.AT_FDCWD, "/proc/sysrq-trigger", unix.O_WRONLY), unix.ENOENT},
		{"a sysctl", try(unix.SYS_OPENAT, unix.AT_FDCWD, "/proc/sys/kernel/core_pattern", unix.O_WRONLY), unix.ENOENT},
		{"make a file in its root", try(unix.SYS_OPENAT, unix.AT_FDCWD, "/x", unix.O_CREAT|unix.O_WRONLY, 0o600), unix.EROFS},
		{"make a file beside the binds", try(unix.SYS_OPENAT, share, "x", unix.O_CREAT|unix.O_WRONLY, 0o600), unix.EROFS},
		{"open a device node", try(unix.SYS_OPENAT, share, "rootfs/node", unix.O_RDWR), unix.EACCES},
		{"make a block device", try(unix.SYS_MKNODAT, share, "rootfs/disk", unix.S_IFBLK|0o666, disk), unix.EPERM},
		{"give a program a capability", try(unix.SYS_SETXATTR, fmt.Sprintf("/proc/self/fd/%d/rootfs/tools/busybox", share), "security.capability", []byte{0, 0, 0, 2, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 20, 0), unix.EPERM},
		{"name a handle", try(unix.SYS_NAME_TO_HANDLE_AT, share, "rootfs", 0, 0, 0), unix.EPERM},
		{"signal everybody", try(unix.SYS_KILL, -1, int(unix.SIGKILL)), unix.EPERM},
		{"signal the supervisor", try(unix.SYS_KILL, c.pid, int(unix.SIGKILL)), unix.EPERM},
		// tgkill is allowed for its own threads, and no other process is in its pid namespace.
		{"signal a thread of the supervisor", try(unix.SYS_TGKILL, c.pid, c.pid, int(unix.SIGKILL)), unix.ESRCH},
		{"start a process", try(unix.SYS_CLONE, int(unix.SIGCHLD), 0, 0, 0, 0), unix.EPERM},
		{"start a process anew", try(unix.SYS_CLONE3, make([]byte, 64), 64), unix.ENOSYS},
		{"outlive the supervisor", try(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, 0, 0, 0, 0), unix.EPERM},
		{"bpf", try(unix.SYS_BPF, 0, make([]byte, 64), 64), unix.EPERM},
		{"io_uring", try(unix.SYS_IO_URING_SETUP, 1, make([]byte, 128)), unix.ENOSYS},
		{"userfaultfd", try(unix.SYS_USERFAULTFD, 0), unix.EPERM},
		{"perf_event_open", try(unix.SYS_PERF_EVENT_OPEN, make([]byte, 128), 0, -1, -1, 0), unix.EPERM},
		{"keyrings", try(unix.SYS_KEYCTL, 0, 0, 0), unix.EPERM},
		{"personality", try(unix.SYS_PERSONALITY, 0), unix.EPERM},
		{"memory to execute", try(unix.SYS_MEMFD_CREATE, "x", 0), unix.ENOSYS},
		{"connect to an abstract socket", try(unix.SYS_CONNECT, share, abstract, len(abstract)), unix.EPERM},
		{"a pair of sockets", try(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, make([]byte, 8)), unix.EPERM},
		{"a listener of its own", try(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, make([]byte, 16)), unix.EPERM},
	}
	for name, family := range map[string]int{"UNIX": unix.AF_UNIX, "INET": unix.AF_INET, "NETLINK": unix.AF_NETLINK, "PACKET": unix.AF_PACKET, "VSOCK": unix.AF_VSOCK, "ALG": unix.AF_ALG} {
		all = append(all, attempt{"a socket of AF_" + name, try(unix.SYS_SOCKET, family, unix.SOCK_STREAM, 0), unix.EPERM})
	}
	tap := fdOf(t, vmm, "a tap", func(_ string, st unix.Stat_t) bool { return st.Rdev == unix.Mkdev(10, 200) })
	for name, request := range map[string]int{
		"TUNSETIFF": unix.TUNSETIFF, "TUNSETPERSIST": unix.TUNSETPERSIST, "TUNSETOWNER": unix.TUNSETOWNER, "TUNSETGROUP": unix.TUNSETGROUP,
		"TUNSETLINK": unix.TUNSETLINK, "TUNSETQUEUE": unix.TUNSETQUEUE, "TUNATTACHFILTER": unix.TUNATTACHFILTER,
		"TUNSETSTEERINGEBPF": unix.TUNSETSTEERINGEBPF, "SIOCSIFHWADDR": unix.SIOCSIFHWADDR,
	} {
		all = append(all, attempt{name + " of a tap", try(unix.SYS_IOCTL, tap, request, make([]byte, 64)), unix.ENOTTY})
	}
	attempts(t, vmm, all)
	// QEMU continues where it was.
	c.exec("cat", "/proc/sys/kernel/hostname").is(0)
	c.stop()
}

// TestMadVMMAndTheTemplate: no guest sees what another one writes.
func TestMadVMMAndTheTemplate(t *testing.T) {
	needVM(t)
	t.Parallel()
	c, vmm := vmmOf(t)
	path := argOf(t, vmm, "mem-path")
	if path == "" {
		t.Skip("the container has booted, not woken up from a template")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if dir, err := os.Stat(filepath.Dir(path)); err != nil || dir.Mode().Perm()&0o022 != 0 || info.Mode().Perm() != 0o600 {
		t.Errorf("others than root may write the template: %v, %v, %v", info.Mode(), dir.Mode(), err)
	}
	ino := info.Sys().(*syscall.Stat_t).Ino
	ram := fdOf(t, vmm, "the template's memory", func(_ string, st unix.Stat_t) bool { return st.Ino == ino && st.Mode&unix.S_IFMT == unix.S_IFREG })
	again := fmt.Sprintf("/proc/self/fd/%d", ram)
	attempts(t, vmm, []attempt{
		{"write into the template", try(unix.SYS_PWRITE64, ram, "x", 1, 0), unix.EBADF},
		// QEMU asks for holes when the guest returns memory. The call does nothing.
		{"make a hole in it", try(unix.SYS_FALLOCATE, ram, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 64<<20), nil},
		{"zero a part of it", try(unix.SYS_FALLOCATE, ram, unix.FALLOC_FL_ZERO_RANGE, 0, 4096), unix.EBADF},
		{"cut it off", try(unix.SYS_FTRUNCATE, ram, 0), unix.EINVAL},
		{"map it to write", try(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, ram, 0), unix.EACCES},
		{"open it again", try(unix.SYS_OPENAT, unix.AT_FDCWD, again, unix.O_RDWR), unix.EROFS},
		{"cut it off by name", try(unix.SYS_TRUNCATE, again, 0), unix.EROFS},
		{"change its mode", try(unix.SYS_CHMOD, again, 0o666), unix.EROFS},
	})
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if was, is := info.Sys().(*syscall.Stat_t).Blocks, after.Sys().(*syscall.Stat_t).Blocks; is != was || !after.ModTime().Equal(info.ModTime()) {
		t.Errorf("the template has changed: %d blocks, then %d", was, is)
	}
	c.stop()
}

// TestMadVMMIsKilled: a call that QEMU never makes ends the vmm, and the reason names the call.
func TestMadVMMIsKilled(t *testing.T) {
	needVM(t)
	t.Parallel()
	type calls func(c *container, share int) injector.Call
	for name, call := range map[string]calls{
		"open_by_handle_at": func(_ *container, share int) injector.Call {
			handle := append(binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, 8), 1), 2, 0, 0, 0, 0, 0, 0, 0)
			return try(unix.SYS_OPEN_BY_HANDLE_AT, share, handle, unix.O_RDONLY)
		},
		"ptrace":            func(c *container, _ int) injector.Call { return try(unix.SYS_PTRACE, unix.PTRACE_ATTACH, c.pid, 0, 0) },
		"process_vm_writev": func(c *container, _ int) injector.Call { return try(unix.SYS_PROCESS_VM_WRITEV, c.pid, 0, 0, 0, 0, 0) },
		"pidfd_open":        func(c *container, _ int) injector.Call { return try(unix.SYS_PIDFD_OPEN, c.pid, 0) },
		"pidfd_getfd":       func(_ *container, share int) injector.Call { return try(unix.SYS_PIDFD_GETFD, share, 0, 0) },
		"fsopen":            func(*container, int) injector.Call { return try(unix.SYS_FSOPEN, "proc", 0) },
		"move_mount": func(_ *container, share int) injector.Call {
			return try(unix.SYS_MOVE_MOUNT, share, "", unix.AT_FDCWD, "/proc", 0)
		},
		"mount":   func(*container, int) injector.Call { return try(unix.SYS_MOUNT, "none", "/proc", "tmpfs", 0, 0) },
		"unshare": func(*container, int) injector.Call { return try(unix.SYS_UNSHARE, unix.CLONE_NEWUSER) },
		"setns":   func(_ *container, share int) injector.Call { return try(unix.SYS_SETNS, share, 0) },
		"setuid":  func(*container, int) injector.Call { return try(unix.SYS_SETUID, 1000) },
		"capset":  func(*container, int) injector.Call { return try(unix.SYS_CAPSET, 0, 0) },
		"execve":  func(*container, int) injector.Call { return try(unix.SYS_EXECVE, "/share/rootfs/bin/busybox", 0, 0) },
		"execveat": func(_ *container, share int) injector.Call {
			return try(unix.SYS_EXECVEAT, share, "rootfs/bin/busybox", 0, 0, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, vmm := vmmOf(t)
			log := filepath.Join(c.e.root, c.id, "supervisor.log")
			err := injector.Run(vmm, func(i *injector.Injector) error {
				got, err := i.Do(call(c, shareFD(t, vmm)))
				t.Logf("it got %d, %v", got, err)
				return err
			})
			if !errors.Is(err, injector.ErrEnded) {
				t.Fatalf("the vmm lives on: %v", err)
			}
			c.e.exitOf(c.exit)
			if said := readFile(t, log); !strings.Contains(said, "vmm called "+name) {
				t.Errorf("the log does not say that: %s", said)
			}
			c.e.ok("delete", "--force", c.id)
		})
	}
}

// TestVMMIsRestricted looks at the process from outside.
func TestVMMIsRestricted(t *testing.T) {
	needVM(t)
	t.Parallel()
	withoutPIDNS := func(s *specs.Spec) {
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
		withAnnotation("org.huskvm.pid", "private")(s)
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	maxFiles := min(65536, files.Max)
	for name, c := range map[string]struct {
		options []specOption
		caps    uint64
		mapped  bool
	}{
		"none":           {[]specOption{withCaps()}, fileCaps, false},
		"docker's":       {nil, fileCaps | 1<<unix.CAP_MKNOD | 1<<unix.CAP_SETFCAP, false},
		"all, no pid":    {[]specOption{withCaps("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_MKNOD"), withoutPIDNS}, fileCaps | 1<<unix.CAP_MKNOD, false},
		"user namespace": {[]specOption{withUserNS("")}, fileCaps | 1<<unix.CAP_MKNOD | 1<<unix.CAP_SETFCAP, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ctr *container
			var vmm int
			if c.mapped {
				e := newEnv(t)
				ctr = e.createStarted(e.mappedBundle(append(c.options, withArgs("sleep", "1000"))...))
				vmm = e.vmms()[0]
			} else {
				ctr, vmm = vmmOf(t, c.options...)
			}
			dir := fmt.Sprintf("/proc/%d/", vmm)
			status := map[string]string{}
			for line := range strings.Lines(readFile(t, dir+"status")) {
				key, value, _ := strings.Cut(line, ":")
				status[key] = strings.TrimSpace(value)
			}
			caps := fmt.Sprintf("%016x", c.caps)
			ambient := "0000000000000000"
			if c.mapped { // by which a user who is not root has any
				ambient = caps
			}
			for key, want := range map[string]string{
				"CapInh": ambient, "CapAmb": ambient, "CapPrm": caps, "CapEff": caps, "CapBnd": caps,
				"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
			} {
				if got, ok := status[key]; ok && got != want {
					t.Errorf("%s is %s, want %s", key, got, want)
				}
			}
			alone := []string{"net", "ipc", "uts", "cgroup", "mnt"}
			if c.mapped { // and in the pid namespace of the container's stand-in
				alone = append(alone, "user")
				onlyHusks(t, ctr.e, vmm)
			} else {
				alone = append(alone, "pid")
				if pids := strings.Fields(status["NSpid"]); pids[len(pids)-1] != "1" {
					t.Errorf("the vmm is no init of a pid namespace: %v", pids)
				}
			}
			for _, ns := range alone {
				own, err := os.Readlink(dir + "ns/" + ns)
				if err != nil {
					t.Fatal(err)
				}
				if users := sharing(t, ns, own); !slices.Equal(users, []int{vmm}) {
					t.Errorf("in the vmm's %s namespace are %v, the vmm is %d", ns, users, vmm)
				}
			}
			for _, want := range []string{fmt.Sprintf("Max open files %d %d ", maxFiles, maxFiles), "Max core file size 1 1", "Max locked memory 0 0", "Max msgqueue size 0 0"} {
				found := false
				for line := range strings.Lines(readFile(t, dir+"limits")) {
					found = found || strings.HasPrefix(strings.Join(strings.Fields(line), " "), want)
				}
				if !found {
					t.Errorf("limits of the vmm lack %q:\n%s", want, readFile(t, dir+"limits"))
				}
			}
			harmlessMounts(t, vmm)
			ctr.stop()
		})
	}
}

// harmlessMounts fails if a vmm has a mount in which the host's kernel honours setuid bits,
// device nodes or executables of a guest, or one to which mounts propagate.
func harmlessMounts(t *testing.T, vmm int) {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/mountinfo", vmm))) {
		fields := strings.Fields(line)
		for _, flag := range []string{"nosuid", "nodev", "noexec"} {
			if !slices.Contains(strings.Split(fields[5], ","), flag) {
				t.Errorf("the vmm has a mount without %s: %s", flag, line)
			}
		}
		if fields[6] != "-" {
			t.Errorf("the vmm has a mount that is not private: %s", line)
		}
	}
}

// sharing lists the processes in a namespace.
func sharing(t *testing.T, kind, name string) []int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	var users []int
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil && ns == name {
			pid, err := strconv.Atoi(strings.Split(link, "/")[2])
			if err != nil {
				t.Fatal(err)
			}
			users = append(users, pid)
		}
	}
	return users
}

// TestFilesWithoutCapabilities: a user of a container without capabilities can do with files
// only what a user can, although QEMU, which does it, is root.
func TestFilesWithoutCapabilities(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	const script = `cd /home/u; umask 022
touch f && chmod 600 f && echo hi >f && cat f && chmod 4711 f && stat -c '%a %u %g' f
mkdir d && touch d/x && chmod 2755 d && stat -c '%a %u %g' d && stat -c '%a %u %g' d/x
ln f hard && ln -s f soft && mkfifo fifo && mv d e && chmod 0 f && rm -f f hard soft fifo && rm -r e
cat /secret 2>/dev/null || echo private
mknod node c 1 3 2>/dev/null || echo no node
ls`
	bundle := e.bundle(withScript(script), withCaps(), func(s *specs.Spec) { s.Process.User = specs.User{UID: 1000, GID: 1000} })
	home := filepath.Join(bundle, "rootfs/home/u")
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(bundle, "rootfs/secret")
	writeFile(t, secret, "secret")
	if err := os.Chmod(secret, 0o600); err != nil {
		t.Fatal(err)
	}
	const want = "hi\n4711 1000 1000\n2755 1000 1000\n644 1000 1000\nprivate\nno node\n"
	if got := e.ok("run", "--bundle", bundle, e.id()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLateMounts: what the host mounts below a shared directory after create is neither in the
// container nor within the vmm's reach, for which it would be neither read-only nor nodev. With
// hooks of create the rootfs is shared in another way.
func TestLateMounts(t *testing.T) {
	needVM(t)
	t.Parallel()
	for name, options := range map[string][]specOption{
		"plain": nil,
		"hooks": {func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true"}}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			host := e.mkdir("host")
			mount := func(dir string) {
				if err := unix.Mount("husk-test", dir, "tmpfs", 0, "size=64m"); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
						t.Errorf("unmount %s: %v", dir, err)
					}
				})
			}
			mount(host)
			// systemd makes all mounts of the host shared.
			if err := unix.Mount("", host, "", unix.MS_SHARED, ""); err != nil {
				t.Fatal(err)
			}
			volume := filepath.Join(host, "volume/late")
			if err := os.MkdirAll(volume, 0o755); err != nil {
				t.Fatal(err)
			}
			rootfs := filepath.Join(host, "rootfs")
			copyTree(t, filepath.Join(assetsDir, "rootfs"), rootfs)
			if err := os.MkdirAll(filepath.Join(rootfs, "late"), 0o755); err != nil {
				t.Fatal(err)
			}
			all := append([]specOption{
				withArgs("sleep", "1000"), withBind(filepath.Dir(volume), "/volume", "rbind", "rslave", "ro"),
				func(s *specs.Spec) { s.Root.Path = rootfs },
			}, options...)
			c := e.createStarted(e.bundle(all...))
			for _, dir := range []string{volume, filepath.Join(rootfs, "late")} {
				mount(dir)
				writeFile(t, filepath.Join(dir, "secret"), "secret")
			}
			if r := c.exec("ls", "/late", "/volume/late"); strings.Contains(r.stdout, "secret") {
				t.Errorf("the container sees what the host has mounted later: %q", r.stdout)
			}
			for _, vmm := range e.vmms() {
				for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/mountinfo", vmm))) {
					if strings.Contains(line, "/late ") {
						t.Errorf("the vmm has what the host has mounted later: %s", line)
					}
				}
			}
			c.stop()
		})
	}
}
