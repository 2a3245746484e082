//go:build integration

// Package integration holds black-box tests: they know the runtime under test only as a
// program. RUNTIME is its path (default: ../husk). Everything that is not specific to VMs must
// also pass with RUNTIME=runc, which shows that the tests expect what runc does.
package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain sets these once.
var (
	runtimePath string // absolute
	runtimeName string // first word of --version: "husk" or "runc"
	isVM        bool   // containers are virtual machines
	assetsDir   string // busybox tree and test program, copied into each bundle
	settings    string // husk's settings file; empty for other runtimes
)

// testTimeout bounds one call of the runtime. It is long, because an emulated guest on a busy
// machine with two cores may need many seconds to boot. HUSK_TEST_TIMEOUT changes it, as in the
// KVM test bed, where the whole machine is emulated.
var testTimeout = 90 * time.Second

// The main goroutine keeps the main thread. If a test's goroutine left the main thread in
// another namespace, Go would park it instead of ending it, and /proc/PID/ns would show that
// namespace as the process's.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		return 1
	}
	defer os.RemoveAll(assetsDir) // it contains only copies, nothing is mounted in it
	code := m.Run()
	if left := liveDescendants(); len(left) > 0 && code == 0 {
		fmt.Fprintf(os.Stderr, "integration: processes left after the last test:\n%s\n", strings.Join(left, "\n"))
		return 1
	}
	return code
}

func setUp() error {
	if os.Getuid() != 0 {
		return errors.New("these tests must run as root")
	}
	if text := os.Getenv("HUSK_TEST_TIMEOUT"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("HUSK_TEST_TIMEOUT: %w", err)
		}
		testTimeout = d
	}
	// Processes that the runtime leaves behind become children of this process, as they become
	// children of containerd's shim and of conmon, so that tests can wait for them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	if err := findRuntime(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "husk-assets-")
	if err != nil {
		return err
	}
	assetsDir = dir
	if err := buildAssets(dir); err != nil {
		return fmt.Errorf("build test assets: %w", err)
	}
	if isVM {
		return writeSettings()
	}
	return nil
}

var versionLine = regexp.MustCompile(`^(\S+) version \S+`)

func findRuntime() error {
	name := os.Getenv("RUNTIME")
	if name == "" {
		name = "../husk"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("find the runtime under test: %w (build it with make, or set RUNTIME)", err)
	}
	if runtimePath, err = filepath.Abs(path); err != nil {
		return err
	}
	out, err := exec.Command(runtimePath, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", runtimePath, err)
	}
	match := versionLine.FindSubmatch(out)
	if match == nil {
		return fmt.Errorf("%s --version: first line is not \"NAME version X\": %q", runtimePath, out)
	}
	runtimeName = string(match[1])
	isVM = runtimeName != "runc" && runtimeName != "crun"
	return nil
}

// writeSettings writes settings with the kernel that make has fetched, so that results do not
// depend on what is installed in /boot. HUSK_KERNEL and HUSK_MODULES name it; HUSK_SETTINGS
// adds lines (accel = "kvm", ...).
func writeSettings() error {
	kernel, modules := os.Getenv("HUSK_KERNEL"), os.Getenv("HUSK_MODULES")
	if kernel == "" {
		found, _ := filepath.Glob("../build/kernel/boot/vmlinuz-*")
		if len(found) == 0 {
			return errors.New("no guest kernel: run make stock-kernel, or set HUSK_KERNEL and HUSK_MODULES")
		}
		kernel = found[len(found)-1]
	}
	if modules == "" {
		release := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
		modules = filepath.Join(filepath.Dir(kernel), "../lib/modules", release)
	}
	cache := os.Getenv("HUSK_CACHE")
	if cache == "" {
		cache = filepath.Join(assetsDir, "cache")
	}
	var b strings.Builder
	for _, kv := range [][2]string{{"kernel", kernel}, {"modules", modules}, {"cache", cache}} {
		abs, err := filepath.Abs(kv[1])
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s = %q\n", kv[0], abs)
	}
	b.WriteString(os.Getenv("HUSK_SETTINGS"))
	b.WriteString("\n")
	fmt.Fprintf(&b, "failures = %q\n", filepath.Join(assetsDir, "failures"))
	settings = filepath.Join(assetsDir, "husk.toml")
	return os.WriteFile(settings, []byte(b.String()), 0o644)
}

// buildAssets makes the tree that every rootfs is copied from: busybox with its applets as
// symbolic links, and the test program for what busybox cannot do.
func buildAssets(dir string) error {
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr/bin", "var"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w (apt-get install busybox-static)", err)
	}
	if err := copyFile(busybox, filepath.Join(root, "bin/busybox"), 0o755); err != nil {
		return err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(applets)) {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/tmp:/bin/sh\n",
		"etc/group":  "root:x:0:\ndaemon:x:1:\nextra:x:77:daemon\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	prog := filepath.Join(root, "bin/testprog")
	// The outer machine of the KVM test bed has no compiler, so it gets the program.
	if built := os.Getenv("HUSK_TESTPROG"); built != "" {
		return copyFile(built, prog, 0o755)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", prog, "./testprog")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build testprog: %w\n%s", err, out)
	}
	return nil
}

func copyFile(src, dst string, mode os.FileMode) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	if err := os.WriteFile(dst, data, mode); err != nil {
		return err
	}
	return os.Chmod(dst, mode)
}

// needVM skips a test of something that only a virtual machine has.
func needVM(t *testing.T) {
	t.Helper()
	if !isVM {
		t.Skipf("%s containers are not virtual machines", runtimeName)
	}
}
