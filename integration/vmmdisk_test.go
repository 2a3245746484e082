//go:build integration

package integration

import (
	"fmt"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestMadVMMAndTheDisk: a vmm that has been taken over writes to no disk that is read-only
// for the container, and opens none anew. EACCES is the mount's word; the cgroup's,
// which may allow more, would be EPERM.
func TestMadVMMAndTheDisk(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	path, minor := loopDevice(t, e.path("disk"), 1<<20)
	writeAt(t, path, "kept\n")
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), withDevice("/dev/disk", 7, minor), func(s *specs.Spec) {
		s.Linux.Devices[len(s.Linux.Devices)-1].Type = "b"
		major := int64(7)
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Type: "b", Major: &major, Minor: &minor, Access: "r"}}
	}))
	vmm := e.vmms()[0]
	disk := fdOf(t, vmm, "the disk", func(_ string, st unix.Stat_t) bool {
		return st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == unix.Mkdev(7, uint32(minor))
	})
	again := fmt.Sprintf("/proc/self/fd/%d", disk)
	block := make([]byte, 512)
	attempts(t, vmm, []attempt{
		{"write to it", try(unix.SYS_PWRITE64, disk, block, len(block), 0), unix.EBADF},
		{"open it to write", try(unix.SYS_OPENAT, unix.AT_FDCWD, again, unix.O_RDWR), unix.EACCES},
		{"open it to read", try(unix.SYS_OPENAT, unix.AT_FDCWD, again, unix.O_RDONLY), unix.EACCES},
		{"cut it off by name", try(unix.SYS_TRUNCATE, again, 0), unix.EINVAL},
	})
	c.stop()
	if got := readFile(t, path)[:5]; got != "kept\n" {
		t.Errorf("the disk holds %q", got)
	}
}
