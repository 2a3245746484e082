//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMadVMMOfUserNamespace: the vmm of a container with a user namespace is a user without
// rights. If it is taken over, it reaches nothing but what belongs to the container.
func TestMadVMMOfUserNamespace(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	bundle := e.mappedBundle(withArgs("sleep", "1000"), withUserNS(""))
	rootfs := filepath.Join(bundle, "rootfs")
	for path, owner := range map[string]int{"roots": 0, "own": outerUID} {
		writeFile(t, filepath.Join(rootfs, path), "text\n")
		if err := os.Chmod(filepath.Join(rootfs, path), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(rootfs, path), owner, owner/outerUID*outerGID); err != nil {
			t.Fatal(err)
		}
	}
	c := e.createStarted(bundle)
	vmms := e.vmms()
	if len(vmms) != 1 {
		t.Fatalf("vmm processes of one container: %v", vmms)
	}
	vmm := vmms[0]
	proc := fmt.Sprintf("/proc/%d/", vmm)
	for file, first := range map[string]string{"uid_map": "100000 100000 65536", "gid_map": "200000 200000 65536"} {
		lines := strings.Split(strings.TrimSpace(readFile(t, proc+file)), "\n")
		if len(lines) != 2 || strings.Join(strings.Fields(lines[0]), " ") != first || strings.HasPrefix(strings.TrimSpace(lines[1]), "0 ") {
			t.Errorf("%s of the vmm is %q", file, lines)
		}
	}
	var uid, euid, suid, fsuid uint32
	for line := range strings.Lines(readFile(t, proc+"status")) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			_, _ = fmt.Sscan(ids, &uid, &euid, &suid, &fsuid)
		}
	}
	if uid < 1<<31 || uid != euid || uid != suid || uid != fsuid {
		t.Errorf("the vmm is user %d, %d, %d, %d", uid, euid, suid, fsuid)
	}
	share := shareFD(t, vmm)
	kernel := "/no/kernel"
	args := strings.Split(readFile(t, proc+"cmdline"), "\x00")
	for i, arg := range args[:len(args)-1] {
		if arg == "-kernel" {
			kernel = args[i+1]
		}
	}
	attempts(t, vmm, []attempt{
		{"open the kernel once more", try(unix.SYS_OPENAT, unix.AT_FDCWD, kernel, unix.O_RDONLY), unix.ENOENT},
		{"the root of the stand-in", try(unix.SYS_OPENAT, unix.AT_FDCWD, "/proc/1/root/bin", unix.O_RDONLY), unix.EACCES},
		{"root's file", try(unix.SYS_OPENAT, share, "rootfs/roots", unix.O_RDONLY), unix.EACCES},
		{"the container's file", try(unix.SYS_OPENAT, share, "rootfs/own", unix.O_RDWR), nil},
		{"give it to root", try(unix.SYS_FCHOWNAT, share, "rootfs/own", 0, 0, 0), unix.EINVAL},
		{"take root's", try(unix.SYS_FCHOWNAT, share, "rootfs/roots", outerUID, outerGID, 0), unix.EPERM},
		{"change root's mode", try(unix.SYS_FCHMODAT, share, "rootfs/roots", 0o666), unix.EPERM},
		{"make a device node", try(unix.SYS_MKNODAT, share, "rootfs/disk", unix.S_IFBLK|0o666, int(unix.Mkdev(8, 0))), unix.EPERM},
		{"give it to another of the container's", try(unix.SYS_FCHOWNAT, share, "rootfs/own", outerUID+7, outerGID+8, 0), nil},
	})
	c.stop()
}

// onlyHusks fails if in a vmm's pid namespace are others than husk's own processes of the
// same container, or if the vmm can do anything to one of them.
func onlyHusks(t *testing.T, e *env, vmm int) {
	t.Helper()
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", vmm))
	if err != nil {
		t.Fatal(err)
	}
	ours := e.processes()
	var all []attempt
	for _, pid := range sharing(t, "pid", own) {
		if ours[pid] == "" {
			t.Errorf("process %d (%s) is in the vmm's pid namespace", pid, describe(pid))
		}
		pids := strings.Fields(statusLine(t, pid, "NSpid"))
		seen, err := strconv.Atoi(pids[len(pids)-1])
		if err != nil {
			t.Fatal(err)
		}
		if pid == vmm {
			continue
		}
		for _, file := range []string{"mem", "environ", "auxv", "root/etc", "fd/0"} {
			all = append(all, attempt{describe(pid) + ": " + file, try(unix.SYS_OPENAT, unix.AT_FDCWD, fmt.Sprintf("/proc/%d/%s", seen, file), unix.O_RDONLY), unix.EACCES})
		}
		all = append(all, attempt{describe(pid) + ": a signal", try(unix.SYS_TGKILL, seen, seen, int(unix.SIGKILL)), unix.EPERM})
	}
	if len(all) == 0 {
		t.Error("in the vmm's pid namespace is nobody of husk's")
	}
	attempts(t, vmm, all)
}

func statusLine(t *testing.T, pid int, field string) string {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/status", pid))) {
		if key, value, _ := strings.Cut(line, ":"); key == field {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("status of %d has no %s", pid, field)
	return ""
}
