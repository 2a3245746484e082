package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/distro"
	"github.com/huskvm/husk/hypervisor"
)

// husk's main does the same: see confine.
func init() { runtime.LockOSThread() }

// greets is a vmm written in shell that answers every command with success. Its descriptors are
// 3 for QMP, 4 for the console and 5 for the agent channel.
const greets = `#!/bin/sh
echo '{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}' >&3
n=0
while read -r line <&3; do
	n=$((n+1))
	case $line in
	*'"cont"'*) [ -e /etc ] && unconfined=yes;;
	*'"query-kvm"'*) [ "$unconfined" ] && exit 9;;
	*'"die"'*) echo 'qemu: something broke' >&2; exit 3;;
	*'"execute-this"'*) exec /share/program;;
	*'"reset"'*) echo 'Kernel panic - not syncing: test' >&4
		echo '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}' >&3; exit 0;;
	*'"shutdown"'*) echo '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}' >&3; exit 0;;
	esac
	echo "{\"return\": {\"enabled\": true}, \"id\": $n}" >&3
done
`

func scriptConfig(t *testing.T, script string) hypervisor.Config {
	t.Helper()
	cfg := tcgConfig()
	cfg.ShareDir = t.TempDir()
	cfg.Binary = write(t, t.TempDir(), "qemu", script, 0o755)
	return cfg
}

func startVM(t *testing.T, cfg hypervisor.Config) *vm {
	t.Helper()
	started, err := New().Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopVM(t, started) })
	return started.(*vm)
}

func stopVM(t *testing.T, v hypervisor.VM) {
	t.Helper()
	if err := v.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if conn := v.Channel().Serial; conn != nil {
		if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("close channel: %v", err)
		}
	}
}

func waitDone(t *testing.T, v hypervisor.VM, limit time.Duration) {
	t.Helper()
	select {
	case <-v.Done():
	case <-time.After(limit):
		t.Fatalf("vm did not end within %v; console:\n%s", limit, v.Console())
	}
}

func TestVMOfAScript(t *testing.T) {
	v := startVM(t, scriptConfig(t, greets))
	info, err := v.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := hypervisor.Info{HostPID: info.HostPID, Accel: hypervisor.KVM}
	if info != want || unix.Kill(info.HostPID, 0) != nil {
		t.Errorf("Info = %+v, want %+v of a live process", info, want)
	}
	if v.Err() != nil {
		t.Errorf("Err of a running vm = %v", v.Err())
	}
	if pgid, err := unix.Getsid(info.HostPID); err != nil || pgid != info.HostPID {
		t.Errorf("session of the vmm = %d, %v, want its own", pgid, err)
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", info.HostPID))
	if err != nil || ours == theirs {
		t.Errorf("mount namespace of the vmm = %q, %v, want another than %q", theirs, err, ours)
	}
	for range 2 {
		if err := v.Stop(); err != nil {
			t.Error(err)
		}
	}
	waitDone(t, v, 10*time.Second)
	if err := v.Err(); err != nil {
		t.Errorf("Err after Stop = %v", err)
	}
	if err := unix.Kill(info.HostPID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the vmm is still there after Stop: %v", err)
	}
	if _, err := v.Info(t.Context()); err == nil {
		t.Error("Info of a stopped vm succeeded")
	}
}

func TestErrSaysWhyTheVMMEnded(t *testing.T) {
	for cmd, want := range map[string]string{
		"execute-this": "vmm called execve, which it does only when somebody has taken it over: it was killed",
		"die":          "vmm ended: exit status 3: qemu: something broke",
		"reset":        `guest kernel panicked: "Kernel panic - not syncing: test"`,
		"shutdown":     "guest powered itself off",
	} {
		t.Run(cmd, func(t *testing.T) {
			v := startVM(t, scriptConfig(t, greets))
			// The vmm ends instead of answering.
			v.qmp.Execute(t.Context(), cmd, nil, nil)
			waitDone(t, v, 10*time.Second)
			if err := v.Err(); err == nil || err.Error() != want {
				t.Errorf("Err = %v, want %s", err, want)
			}
			if err := v.Stop(); err != nil || v.Err() == nil {
				t.Errorf("Stop of an ended vm = %v, and Err = %v", err, v.Err())
			}
		})
	}
	t.Run("killed", func(t *testing.T) {
		v := startVM(t, scriptConfig(t, greets))
		if err := unix.Kill(v.proc.proc.Pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitDone(t, v, 10*time.Second)
		if err := v.Err(); err == nil || err.Error() != "vmm ended: signal: killed" {
			t.Errorf("Err = %v", err)
		}
	})
}

// TestVMMInheritsNothing: neither the environment nor a descriptor that this process leaks
// reaches the vmm.
func TestVMMInheritsNothing(t *testing.T) {
	t.Setenv("LD_LIBRARY_PATH", "/tmp/evil")
	const number = 50
	leaked, err := unix.FcntlInt(0, unix.F_DUPFD, number) // without close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leaked)
	v := startVM(t, scriptConfig(t, greets))
	dir := fmt.Sprintf("/proc/%d/", v.proc.proc.Pid)
	environ, err := os.ReadFile(dir + "environ")
	if said := string(environ); err != nil || strings.Contains(said, "evil") || !strings.Contains(said, "LANG=C") {
		t.Errorf("environment of the vmm: %q, %v", said, err)
	}
	fds := map[int]string{}
	entries, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if fds[fd], err = os.Readlink(dir + "fd/" + e.Name()); err != nil {
			t.Fatal(err)
		}
	}
	// 3 to 5 are the sockets and 6 is the slot of specialFiles. The shell uses numbers from 10
	// on for itself; the others must be free.
	if !strings.HasPrefix(fds[6], "/memfd:") {
		t.Errorf("descriptors of the vmm: %v", fds)
	}
	for fd, what := range fds {
		if fd >= number || fd > 6 && fd < 10 {
			t.Errorf("the vmm has descriptor %d, of %s", fd, what)
		}
	}
	for fd := 3; fd <= 5; fd++ {
		if !strings.HasPrefix(fds[fd], "socket:") {
			t.Errorf("descriptor %d of the vmm is %q", fd, fds[fd])
		}
	}
}

// TestVMMIsConfined: a running vmm finds nothing of the host except the share, and keeps no
// mount of the host busy.
func TestVMMIsConfined(t *testing.T) {
	cfg := scriptConfig(t, greets)
	v := startVM(t, cfg)
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", v.proc.proc.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for line := range strings.Lines(string(mounts)) {
		points = append(points, strings.Fields(line)[4])
	}
	slices.Sort(points)
	if !slices.Equal(points, []string{"/", "/proc", "/share"}) {
		t.Errorf("the vmm's mounts are at %q", points)
	}
	// The script ends if the host's files were there when it was told to run the guest.
	if _, err := v.Info(t.Context()); err != nil {
		t.Errorf("the guest was run before: %v", err)
	}
}

// TestKeptCapabilities: a vmm that serves no files needs none.
func TestKeptCapabilities(t *testing.T) {
	lent := []string{"CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_SETFCAP"}
	if kept := keptCapabilities(hypervisor.Config{FileCapabilities: lent}); len(kept) > 0 {
		t.Errorf("without a share: %v", kept)
	}
	if kept := keptCapabilities(hypervisor.Config{ShareDir: "/x", FileCapabilities: lent}); len(kept) != len(fileCapabilities)+2 {
		t.Errorf("with a share: %v", kept)
	}
}

func TestStartFails(t *testing.T) {
	cases := map[string]struct {
		script  string
		timeout time.Duration
		want    string
	}{
		"ends at once":     {"#!/bin/sh\necho one; echo two >&2; exit 4\n", time.Minute, "/qemu ended at once: exit status 4: one; two"},
		"says nothing":     {"#!/bin/sh\necho thinking >&2\nread -r line <&4\n", 3 * time.Second, "start vm: wait for qmp greeting: context deadline exceeded: thinking"},
		"too old":          {strings.Replace(greets, `"major": 7`, `"major": 6`, 1), time.Minute, "start vm: QEMU 6.2.0 is too old, 7.2 or later is needed"},
		"no memory":        {"#!/bin/sh\necho 'cannot set up guest memory: Cannot allocate memory' >&2; exit 1\n", time.Minute, "give the guest less than 1024 MiB"},
		"speaks otherwise": {"#!/bin/sh\necho hello >&3; read -r line <&4\n", time.Minute, "parse qmp message"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			before := openFDs(t)
			cfg := scriptConfig(t, c.script)
			ctx, cancel := context.WithTimeout(t.Context(), c.timeout)
			defer cancel()
			v, err := New().Start(ctx, cfg)
			if err == nil {
				stopVM(t, v)
				t.Fatal("Start succeeded")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("Start = %v\nwant one with: %s", err, c.want)
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
	t.Run("no binary", func(t *testing.T) {
		cfg := tcgConfig()
		cfg.ShareDir = t.TempDir()
		cfg.Binary = filepath.Join(t.TempDir(), "qemu")
		if _, err := New().Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), distro.Install(distro.QEMU)) {
			t.Errorf("Start = %v", err)
		}
	})
	t.Run("no kvm", func(t *testing.T) {
		cfg := scriptConfig(t, "#!/bin/sh\necho 'qemu: Could not access KVM kernel module: No such file or directory' >&2; exit 1\n")
		cfg.Accel = hypervisor.KVM
		if _, err := New().Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "set accel to auto or tcg") {
			t.Errorf("Start = %v", err)
		}
	})
	t.Run("bad config", func(t *testing.T) {
		if _, err := New().Start(t.Context(), hypervisor.Config{}); err == nil {
			t.Error("Start of an empty config succeeded")
		}
	})
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNoLeaks(t *testing.T) {
	cfg := scriptConfig(t, greets)
	cycle := func() {
		v, err := New().Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		stopVM(t, v)
	}
	cycle() // a package may open something for good at its first use
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	for range 10 {
		cycle()
	}
	if after := openFDs(t); after != fds {
		t.Errorf("%d descriptors before, %d after", fds, after)
	}
	// The last goroutine signals before it returns, so it may still run for a moment.
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > goroutines && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if after := runtime.NumGoroutine(); after > goroutines {
		t.Errorf("%d goroutines before, %d after", goroutines, after)
	}
}

// TestVMOutlivesTheThreadThatStartedIt: the parent-death signal is bound to a thread, and Go
// ends a thread whose goroutine returns while locked to it.
func TestVMOutlivesTheThreadThatStartedIt(t *testing.T) {
	cfg := scriptConfig(t, greets)
	started := make(chan hypervisor.VM)
	tid := make(chan int, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		tid <- unix.Gettid()
		v, err := New().Start(t.Context(), cfg)
		if err != nil {
			t.Error(err)
		}
		started <- v
	}()
	v := <-started
	if v == nil {
		t.FailNow()
	}
	defer stopVM(t, v)
	task := fmt.Sprintf("/proc/self/task/%d", <-tid)
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, err := os.Stat(task); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Skip("the Go runtime kept the thread, as it may: nothing to see")
		}
		runtime.Gosched()
	}
	if _, err := v.Info(t.Context()); err != nil {
		t.Errorf("the vm is gone with the thread: %v, %v", err, v.Err())
	}
}

const parentEnv = "HUSK_TEST_VM_PARENT"

// TestVMDiesWithItsParent kills a process that has started a VM.
func TestVMDiesWithItsParent(t *testing.T) {
	if binary := os.Getenv(parentEnv); binary != "" {
		cfg := tcgConfig()
		cfg.ShareDir, cfg.Binary = t.TempDir(), binary
		v, err := New().Start(t.Context(), cfg)
		if err != nil {
			fmt.Println("failed", err)
			return
		}
		fmt.Println("pid", v.(*vm).proc.proc.Pid)
		<-v.Done()
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// This vmm does not notice that its sockets are closed, so only the signal can end it. It
	// waits on a fifo, because it may start no programs.
	script := strings.Replace(greets, "while read", "exec 9<>$0.fifo\nfor n in 1 2; do read -r line <&3\necho '{\"return\": {}, \"id\": '$n'}' >&3; done\nread -r line <&9\nwhile read", 1)
	cfg := scriptConfig(t, script)
	if err := unix.Mkfifo(cfg.Binary+".fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(self, "-test.run=^TestVMDiesWithItsParent$", "-test.v")
	parent.Env = append(os.Environ(), parentEnv+"="+cfg.Binary)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	lines := bufio.NewScanner(out)
	for pid == 0 && lines.Scan() {
		if _, err := fmt.Sscanf(lines.Text(), "pid %d", &pid); err != nil {
			continue
		}
	}
	if pid == 0 {
		t.Fatalf("the parent started no vm; wait: %v", parent.Wait())
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The parent was killed, so Wait returns an error.
	parent.Wait()
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 10_000); n != 1 || err != nil {
		t.Errorf("the vmm lives on 10 s after its parent was killed: %d, %v", n, err)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
}
