package launch

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// order is the bootstrap of the tests' children.
type order struct {
	Do   string
	Text string
}

// husk's main does the same: see Start.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if IsApart() {
		os.Exit(StartApart())
	}
	if CurrentRole() != "" {
		os.Exit(child())
	}
	os.Exit(m.Run())
}

func child() int {
	var o order
	p, err := Receive(&o)
	if err != nil {
		return 90
	}
	switch o.Do {
	case "vanish":
		return 91
	case "fail":
		_ = p.Report(Report{Error: o.Text})
		return 1
	case "prepare":
		proceed, err := p.Prepared()
		if err != nil {
			return 93
		}
		select {
		case <-proceed:
		case <-p.Gone():
			return 94
		}
		_ = p.Report(Report{Warnings: []string{"went on"}})
	case "user":
		ns, _ := os.Readlink("/proc/self/ns/user")
		maps, _ := os.ReadFile("/proc/self/uid_map")
		var text []byte
		if f := p.File("text"); f != nil {
			text, _ = io.ReadAll(f)
		}
		_ = p.Report(Report{Warnings: []string{ns, strings.Join(strings.Fields(string(maps)), " "), strconv.Itoa(os.Getuid()), string(text)}})
	case "netns":
		ns, _ := os.Readlink("/proc/self/ns/net")
		_ = p.Report(Report{Warnings: []string{ns}})
	default:
		_ = p.Report(Report{Warnings: []string{strings.Join(os.Args, " "), strings.Join(os.Environ(), " "), openFDs()}})
	}
	<-p.Gone()
	if p.Abandoned() {
		return 92
	}
	return 0
}

// openFDs lists the descriptors from 3 on that would stay open at execve.
func openFDs() string {
	entries, _ := os.ReadDir("/proc/self/fd")
	var open []string
	for _, e := range entries {
		var n int
		for _, c := range e.Name() {
			n = n*10 + int(c-'0')
		}
		flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
		if n >= 3 && err == nil && flags&unix.FD_CLOEXEC == 0 {
			open = append(open, e.Name())
		}
	}
	return strings.Join(open, " ")
}

func launch(t *testing.T, o Options, ord order) *Child {
	t.Helper()
	c, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Abort)
	if err := c.Bootstrap(ord); err != nil {
		t.Fatal(err)
	}
	return c
}

func exitCode(t *testing.T, c *Child) int {
	t.Helper()
	st, err := c.Process.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return st.ExitCode()
}

func TestChildTakesArgsAndNoEnvironment(t *testing.T) {
	t.Setenv("LD_LIBRARY_PATH", "/evil")
	leak, err := unix.Open("/dev/null", unix.O_RDONLY, 0) // not close-on-exec, as an engine's may be
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	c := launch(t, Options{Role: Supervisor, Args: []string{"sleep", "300"}}, order{})
	r, err := c.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if r.Warnings[0] != "sleep 300" || r.Warnings[1] != "" || r.Warnings[2] != "" {
		t.Errorf("argv, environment, inheritable descriptors: %q", r.Warnings)
	}
	comm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.Process.Pid), "comm"))
	if err != nil || strings.TrimSpace(string(comm)) != "sleep" {
		t.Errorf("comm %q, %v", comm, err)
	}
	if err := c.Commit(); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, c); code != 0 {
		t.Errorf("a committed child ended with %d", code)
	}
}

func TestParentThatVanishesIsNoticed(t *testing.T) {
	c := launch(t, Options{Role: Supervisor, Args: []string{"x"}}, order{})
	if _, err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	c.conn.Close() // as the kernel does for a cli that is killed
	if code := exitCode(t, c); code != 92 {
		t.Errorf("an abandoned child ended with %d", code)
	}
}

// TestPrepared: child and parent take turns before the report.
func TestPrepared(t *testing.T) {
	c := launch(t, Options{Role: Supervisor, Args: []string{"x"}}, order{Do: "prepare"})
	if err := c.WaitPrepared(); err != nil {
		t.Fatal(err)
	}
	if err := c.Proceed(); err != nil {
		t.Fatal(err)
	}
	r, err := c.Wait()
	if err != nil || len(r.Warnings) != 1 || r.Warnings[0] != "went on" {
		t.Errorf("report %+v, %v", r, err)
	}
	if err := c.Commit(); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, c); code != 0 {
		t.Errorf("a committed child ended with %d", code)
	}

	// The error of a child that fails before it is prepared is returned in the same place.
	c = launch(t, Options{Role: Supervisor, Args: []string{"x"}}, order{Do: "fail", Text: "no such thing"})
	if err := c.WaitPrepared(); err == nil || err.Error() != "no such thing" {
		t.Errorf("got %v", err)
	}
	// If the parent ends in place of proceeding, the child notices that.
	c = launch(t, Options{Role: Supervisor, Args: []string{"x"}}, order{Do: "prepare"})
	if err := c.WaitPrepared(); err != nil {
		t.Fatal(err)
	}
	c.conn.Close()
	if code := exitCode(t, c); code != 94 {
		t.Errorf("an abandoned child ended with %d", code)
	}
}

func TestErrorAndSilence(t *testing.T) {
	c := launch(t, Options{Role: Supervisor, Args: []string{"x"}}, order{Do: "fail", Text: "no such thing"})
	if _, err := c.Wait(); err == nil || err.Error() != "no such thing" {
		t.Errorf("got %v", err)
	}
	c = launch(t, Options{Role: Supervisor, Args: []string{"x"}}, order{Do: "vanish"})
	if _, err := c.Wait(); err == nil || !strings.Contains(err.Error(), "exit status 91") {
		t.Errorf("got %v", err)
	}
}

func TestNamespaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make namespaces")
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	network := func(path string) Options {
		return Options{Role: Supervisor, Args: []string{"x"}, Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: path}}}
	}
	first := launch(t, network(""), order{Do: "netns"})
	r, err := first.Wait()
	if err != nil {
		t.Fatal(err)
	}
	made := r.Warnings[0]
	if made == own {
		t.Fatal("no new network namespace")
	}
	second := launch(t, network("/proc/"+strconv.Itoa(first.Process.Pid)+"/ns/net"), order{Do: "netns"})
	if r, err = second.Wait(); err != nil || r.Warnings[0] != made {
		t.Errorf("joined %v, want %s: %v", r.Warnings, made, err)
	}
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != own {
		t.Errorf("the parent was moved to %s: %v", now, err)
	}
	_, err = Start(network("/proc/self/ns/uts"))
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("a uts namespace taken for a network namespace: %v", err)
	}
}

// TestUserNamespace: a child is root in a new user namespace and in one that it joins, and gets
// files.
func TestUserNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to map ids")
	}
	start := func(path string) (*Child, []string) {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer read.Close()
		if _, err := write.WriteString("passed"); err != nil {
			t.Fatal(err)
		}
		write.Close()
		maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 10}}
		c := launch(t, Options{
			Role: StandIn, Args: []string{"x"}, UIDMaps: maps, GIDMaps: maps, Files: []NamedFile{{"text", read}},
			Namespaces: []specs.LinuxNamespace{{Type: specs.UserNamespace, Path: path}, {Type: specs.UTSNamespace}},
		}, order{Do: "user"})
		r, err := c.Wait()
		if err != nil {
			t.Fatal(err)
		}
		return c, r.Warnings
	}
	first, made := start("")
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil || made[0] == own || made[1] != "0 100000 10" || made[2] != "0" || made[3] != "passed" {
		t.Errorf("new one: %q, own %s, %v", made, own, err)
	}
	_, joined := start("/proc/" + strconv.Itoa(first.Process.Pid) + "/ns/user")
	if !slices.Equal(joined, made) {
		t.Errorf("joined: %q, want %q", joined, made)
	}
}

// TestApart: the child exists only after it was released, and then the process in between has
// gone.
func TestApart(t *testing.T) {
	c, err := Start(Options{Role: Supervisor, Args: []string{"x"}, DoubleFork: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Bootstrap(order{Do: "fail", Text: "it is there"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(); err == nil || err.Error() != "it is there" {
		t.Errorf("got %v", err)
	}
	c.Abort()

	// A child that is not released never exists.
	if c, err = Start(Options{Role: Supervisor, Args: []string{"x"}, DoubleFork: true}); err != nil {
		t.Fatal(err)
	}
	c.Abort()
	if err := c.Process.Signal(unix.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("the process in between: %v", err)
	}
}

func TestParseFDs(t *testing.T) {
	fds, err := parseFDs("bootstrap=3,console=4")
	if err != nil || fds[FDBootstrap] != 3 || fds[FDConsole] != 4 {
		t.Errorf("%v, %v", fds, err)
	}
	for _, bad := range []string{"", "bootstrap", "bootstrap=x", "bootstrap=2", "bootstrap=3,"} {
		if _, err := parseFDs(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
