package privileges

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const roleEnv = "HUSK_TEST_DROP"

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) != "" {
		os.Exit(dropped())
	}
	os.Exit(m.Run())
}

// dropped is a process with several threads that drops its privileges and prints what it has
// left.
func dropped() int {
	stop := make(chan struct{})
	ready := make(chan struct{})
	for range 5 {
		go func() {
			runtime.LockOSThread()
			ready <- struct{}{}
			<-stop
		}()
	}
	for range 5 {
		<-ready
	}
	kept := Kept{Capabilities: []string{"CAP_NET_ADMIN"}, Programs: true}
	if err := Drop(kept); err != nil {
		fmt.Println("drop:", err)
		return 1
	}
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) < 6 {
		fmt.Println(len(tasks), "threads", err)
		return 1
	}
	line := regexp.MustCompile(`(?m)^(Cap\w+|NoNewPrivs|Seccomp):\s*(\w+)$`)
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		var all []string
		for _, m := range line.FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1]+"="+strings.TrimLeft(m[2], "0"))
		}
		fmt.Println(strings.Join(all, " "))
	}
	for name, call := range map[string]func() error{
		"mount":   func() error { return unix.Mount("x", "/", "tmpfs", 0, "") },
		"ptrace":  func() error { return unix.PtraceAttach(os.Getppid()) },
		"setns":   func() error { return unix.Setns(0, 0) },
		"unshare": func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"raw":     func() error { _, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); return err },
		"inet":    func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); return err },
		"mknod":   func() error { return unix.Mknod("/tmp/x", unix.S_IFCHR, 0) },
		"tiocsti": func() error { return unix.IoctlSetPointerInt(0, unix.TIOCSTI, 0) },
		"getfd":   func() error { _, err := unix.PidfdGetfd(0, 0, 0); return err },
		"by handle": func() error {
			_, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, []byte("x")), 0)
			return err
		},
		"clone": func() error {
			_, err := os.StartProcess("/proc/self/exe", []string{"x"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}})
			return err
		},
	} {
		if err := call(); !errors.Is(err, unix.ENOSYS) {
			fmt.Printf("%s: %v\n", name, err)
		}
	}
	// A program that it executes has no more rights.
	out, err := exec.Command("/bin/cat", "/proc/self/status").CombinedOutput()
	for _, m := range line.FindAllStringSubmatch(string(out), -1) {
		fmt.Printf("%s=%s ", m[1], strings.TrimLeft(m[2], "0"))
	}
	fmt.Println(err)
	close(stop)
	return 0
}

func TestDrop(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("there is nothing to drop: needs root")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = []string{roleEnv + "=1"}
	out, err := cmd.CombinedOutput()
	if err != nil && strings.Contains(string(out), unix.ENOTSUP.Error()) {
		t.Skip("with cgo, which the race detector brings, nothing can be done for all threads")
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const netAdmin = "1000"
	want := "CapInh= CapPrm=" + netAdmin + " CapEff=" + netAdmin + " CapBnd=" + netAdmin + " CapAmb= NoNewPrivs=1 Seccomp=2\n"
	rest := strings.ReplaceAll(string(out), want, "")
	if rest != "CapInh= CapPrm= CapEff= CapBnd="+netAdmin+" CapAmb= NoNewPrivs=1 Seccomp=2 <nil>\n" {
		t.Errorf("a process that has dropped its privileges says:\n%s\nwant of each thread\n%s", rest, want)
	}
}

func TestUnknownCapability(t *testing.T) {
	if err := Drop(Kept{Capabilities: []string{"CAP_WINGS"}}); err == nil || !strings.Contains(err.Error(), "CAP_WINGS") {
		t.Error(err)
	}
}
