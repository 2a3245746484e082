package fileserver

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The semantics are tested through a mount of the kernel's: a process of its own reads
// requests from /dev/fuse and gives them to a Server.

const (
	serveEnv     = "HUSK_TEST_FILESERVER_SERVE"
	namespaceEnv = "HUSK_TEST_FILESERVER_NAMESPACE"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(serveEnv); job != "" {
		if err := serveMount(job); err != nil {
			fmt.Fprintln(os.Stderr, "serve:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A mountJob is what the serving process is told.
type mountJob struct {
	Source, Target string
	Export         Export
}

// inNamespace runs the test again in a mount namespace of its own; true inside.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(namespaceEnv) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("mounts a file system: %v", err)
	}
	name := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run="+name, "-test.v", "-test.timeout=8m")
	cmd.Env = append(os.Environ(), namespaceEnv+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in a mount namespace: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// beside returns two paths to the same kind of directory: one below a mount that a server
// serves, and a bare one on the same file system. The third is the mount's source.
func beside(t *testing.T, export Export) (mounted, bare, source string) {
	t.Helper()
	top, err := os.MkdirTemp("", "fileserver") // not t.TempDir, which is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	if image := os.Getenv("HUSK_TEST_FILESERVER_IMAGE"); image != "" { // another file system, by hand
		if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, top).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Cleanup(func() { unix.Unmount(top, unix.MNT_DETACH) })
	}
	mounted, source = filepath.Join(top, "mounted"), filepath.Join(top, "source")
	bare = filepath.Join(top, "bare")
	for _, dir := range []string{mounted, source, bare} {
		os.RemoveAll(dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, source, mounted, export)
	return mounted, bare, source
}

// serve mounts source at target until the test ends.
func serve(t *testing.T, source, target string, export Export) {
	t.Helper()
	job, err := json.Marshal(mountJob{source, target, export})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serveEnv+"="+string(job), "GORACE=halt_on_error=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("the server is not ready: %q, %v", line, err)
	}
	t.Cleanup(func() {
		stdin.Close()
		deadline := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		defer deadline.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server: %v", err)
		}
	})
}

// serveMount is the serving process: until its standard input ends.
func serveMount(text string) error {
	var job mountJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		return err
	}
	unix.Umask(0o77) // must show nowhere
	root, err := unix.Open(job.Source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	job.Export.Root = root
	server, err := New(job.Export)
	if err != nil {
		return err
	}
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", dev)
	if err := unix.Mount("husk-test", job.Target, "fuse.husk", 0, options); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- transport(dev, server) }()
	fmt.Println("ready")
	go func() {
		io.Copy(io.Discard, os.Stdin)
		if err := unix.Unmount(job.Target, unix.MNT_DETACH); err != nil {
			fmt.Fprintln(os.Stderr, "unmount:", err)
			os.Exit(1)
		}
	}()
	if err := <-ended; err != nil {
		return err
	}
	return server.Close()
}

// transport carries messages between the kernel and server until the mount goes.
func transport(dev int, server *Server) error {
	const size = 1<<20 + 1<<16
	free := make(chan []byte, 64)
	get := func() []byte {
		select {
		case b := <-free:
			return b
		default:
			return make([]byte, size)
		}
	}
	for {
		request := get()
		n, err := unix.Read(dev, request)
		switch {
		case errors.Is(err, unix.ENODEV):
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return fmt.Errorf("read a request: %w", err)
		}
		go func() {
			reply := get()
			answer := server.Handle(request[:n:n], reply)
			if answer > 0 {
				if _, err := unix.Write(dev, reply[:answer]); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
					fmt.Fprintf(os.Stderr, "answer to operation %d, %d bytes: %v\n", order.Uint32(request[4:]), answer, err)
					os.Exit(1)
				}
			}
			for _, b := range [][]byte{request, reply} {
				select {
				case free <- b:
				default:
				}
			}
		}()
	}
}
