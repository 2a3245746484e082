package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mountsEnv makes the test binary arrange its own /sys/fs/cgroup before it tests. It is set
// only for a child in a new mount namespace.
const mountsEnv = "HUSK_CGROUP_TEST_MOUNTS"

func TestMain(m *testing.M) {
	if list := os.Getenv(opensEnv); list != "" {
		opens(list)
		os.Exit(0)
	}
	if layout := os.Getenv(mountsEnv); layout != "" {
		if err := arrange(layout); err != nil {
			fmt.Fprintln(os.Stderr, "arrange mounts:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// inLayout says whether the test runs with the layout. If it does not, inLayout runs the test
// again in a child, in a new mount namespace with that layout, and the child's result becomes
// the test's.
func inLayout(t *testing.T, layout string) bool {
	t.Helper()
	if os.Getenv(mountsEnv) == layout {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("mount namespaces need root")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v")
	cmd.Env = append(os.Environ(), mountsEnv+"="+layout)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("with layout %s: %v\n%s", layout, err, out)
	}
	return false
}

// onEachVersion runs a test with the cgroup hierarchies that this machine has, and with cgroup
// v2 alone.
func onEachVersion(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	t.Run("host", test)
	t.Run("v2", func(t *testing.T) {
		if inLayout(t, "v2") {
			test(t)
		}
	})
}

func arrange(layout string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	switch layout {
	case "v2":
		return unix.Mount("none", "/sys/fs/cgroup", "cgroup2", 0, "")
	case "pids-read-only", "all-read-only":
		match := "/sys/fs/cgroup/pids"
		if layout == "all-read-only" {
			match = "/sys/fs/cgroup/*"
		}
		dirs, err := filepath.Glob(match)
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
			if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: not a mount
				return fmt.Errorf("remount %s: %w", dir, err)
			}
		}
		return nil
	case "plain-directories":
		return strayDirectories()
	default:
		return fmt.Errorf("no layout %q", layout)
	}
}

// strayDirectories makes a second /sys/fs/cgroup on a tmpfs. It has directories that are named
// like controllers and are none, and no devices controller.
func strayDirectories() error {
	old, err := os.MkdirTemp("", "husk-cgroup-test-")
	if err != nil {
		return err
	}
	// Only the directory is removed: the mount on it exists in this namespace only.
	defer func() {
		_ = unix.Unmount(old, unix.MNT_DETACH)
		_ = os.Remove(old)
	}()
	if err := unix.Mount("/sys/fs/cgroup", old, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, c := range []string{"cpu", "memory", "pids", "freezer", "systemd"} {
		dir := "/sys/fs/cgroup/" + c
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(filepath.Join(old, c), dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, c := range []string{"devices", "net_cls", "perf_event", "hugetlb"} {
		if err := os.Mkdir("/sys/fs/cgroup/"+c, 0o755); err != nil {
			return err
		}
	}
	return nil
}
