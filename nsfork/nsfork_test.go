package nsfork

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mapped starts a process in a new user namespace and returns a file of the namespace.
func mapped(t *testing.T) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to map ids")
	}
	cmd := exec.Command("sleep", "1000")
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}}
	two := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 500}, {ContainerID: 500, HostID: 7, Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: one, GidMappings: two, GidMappingsEnableSetgroups: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	f, err := os.Open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestIDMaps(t *testing.T) {
	uids, gids, err := IDMaps(mapped(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(uids); strings.Join(got, " ") != "0 100000 1000" {
		t.Errorf("uid_map %q", uids)
	}
	if got := strings.Fields(gids); strings.Join(got, " ") != "0 200000 500 500 7 1" {
		t.Errorf("gid_map %q", gids)
	}
	other, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if _, _, err := IDMaps(other); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a network namespace taken for a user namespace: %v", err)
	}
}

func TestNewUserNS(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to map ids")
	}
	f, err := NewUserNS("0 100 10\n20 200 1\n", "3 4 5\n")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	uids, gids, err := IDMaps(f)
	if got := strings.Join(strings.Fields(uids+" "+gids), " "); err != nil || got != "0 100 10 20 200 1 3 4 5" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := NewUserNS("0 0 0\n", ""); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a mapping of nothing: %v", err)
	}
}

// output starts a program and returns what it writes to its stdout.
func output(t *testing.T, r *Request) (string, error) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	r.Files = []*os.File{null, write, write}
	r.CgroupFD = -1
	pid, err := Start(r)
	_ = write.Close()
	_ = null.Close()
	defer func() { _ = read.Close() }()
	if err != nil {
		return "", err
	}
	text, rerr := io.ReadAll(read)
	if rerr != nil {
		t.Fatal(rerr)
	}
	reap(pid)
	return string(text), nil
}

func TestStart(t *testing.T) {
	ns := mapped(t)
	text, err := output(t, &Request{
		Path: "/bin/sh", Args: []string{"sh", "-c", `id -u; echo $A; pwd; cat /proc/self/uid_map`},
		Env: []string{"A=b", "PATH=/bin:/usr/bin"}, Joins: []Join{{ns, unix.CLONE_NEWUSER}}, Root: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(text), " "); got != "0 b / 0 100000 1000" {
		t.Errorf("got %q", text)
	}
	_, err = output(t, &Request{Path: "/no/such", Args: []string{"x"}})
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("a program that is not there: %v", err)
	}
	_, err = output(t, &Request{Path: "/bin/true", Args: []string{"x"}, Joins: []Join{{ns, unix.CLONE_NEWNET}}})
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "join namespace") {
		t.Errorf("a namespace of another type: %v", err)
	}
}

// TestStartEnds: a child that hangs before it executes its program is given up, whether a
// listener or the program's start is waited for.
func TestStartEnds(t *testing.T) {
	limit := startTimeout
	startTimeout = 50 * time.Millisecond
	defer func() { startTimeout = limit }()
	hang, err := NewCall("hang", unix.SYS_PPOLL, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	listening := &Filter{
		Program: []unix.SockFilter{{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW}},
		Listen:  func(f *os.File) { _ = f.Close() },
	}
	for name, filter := range map[string]*Filter{"listener": listening, "program": nil} {
		t.Run(name, func(t *testing.T) {
			done := make(chan error, 1)
			go func() {
				_, err := Start(&Request{Path: "/bin/true", Args: []string{"true"}, CgroupFD: -1, Calls: []Call{hang}, Filter: filter})
				done <- err
			}()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), "has not started its program within 50ms") {
					t.Errorf("got %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("it waits for ever")
			}
		})
	}
}
