//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// withoutMount removes what is mounted at the destinations and below them.
func withoutMount(destinations ...string) specOption {
	return func(s *specs.Spec) {
		s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool {
			return slices.ContainsFunc(destinations, func(d string) bool {
				return m.Destination == d || strings.HasPrefix(m.Destination, d+"/")
			})
		})
	}
}

// TestNothingMountedOnDev: without a mount on /dev the default devices and links exist too,
// beside what the image has there and what is mounted below.
func TestNothingMountedOnDev(t *testing.T) {
	t.Parallel()
	for name, readonly := range map[string]bool{"writable": false, "read-only": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			bundle := e.bundle(withScript(`set -e
				echo gone > /dev/null
				head -c 3 /dev/zero | od -An -tx1
				! (echo full > /dev/full) 2>/dev/null
				head -c 8 /dev/urandom | wc -c
				for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done
				cat /dev/dir/file
				echo shm > /dev/shm/x && cat /dev/shm/x
				stat -c '%a %F %t:%T' /dev/null /dev/tty`),
				withoutMount("/dev"),
				withMount(specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"mode=1777"}}),
				func(s *specs.Spec) { s.Root.Readonly = readonly })
			writeFile(t, filepath.Join(bundle, "rootfs/dev/dir/file"), "from the image\n")
			if err := os.Mkdir(filepath.Join(bundle, "rootfs/dev/shm"), 0o755); err != nil {
				t.Fatal(err)
			}
			c := e.createStarted(bundle)
			c.exits(0)
			want := " 00 00 00\n8\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n" +
				"from the image\nshm\n666 character special file 1:3\n666 character special file 5:0\n"
			if got := c.stdout.String(); got != want {
				t.Errorf("output %q, want %q", got, want)
			}
			e.ok("delete", c.id)
		})
	}
}

// TestDeviceNodes: nodes of linux.devices, on a tmpfs and in the rootfs itself.
func TestDeviceNodes(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	mode, owner := os.FileMode(0o640), uint32(7)
	bundle := e.bundle(withScript(`set -e
		for d in /dev/nothing /a/b/nothing; do echo gone > $d; stat -c '%a %u:%g %F %t:%T' $d; done
		stat -c '%a %F' /dev/pipe`), func(s *specs.Spec) {
		for _, path := range []string{"/dev/nothing", "/a/b/nothing"} {
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: path, Type: "c", Major: 1, Minor: 3, FileMode: &mode, UID: &owner, GID: &owner})
		}
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/pipe", Type: "p", FileMode: &mode})
	})
	c := e.createStarted(bundle)
	c.exits(0)
	want := strings.Repeat("640 7:7 character special file 1:3\n", 2) + "640 fifo\n"
	if got := c.stdout.String(); got != want {
		t.Errorf("output %q, want %q", got, want)
	}
	e.ok("delete", c.id)
}

// withDevice adds a device to the container, as engines do for --device.
func withDevice(path string, major, minor int64) specOption {
	return func(s *specs.Spec) {
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: path, Type: "c", Major: major, Minor: minor})
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices,
			specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"})
	}
}

func withCapabilities(names ...string) specOption {
	return func(s *specs.Spec) {
		caps := append(slices.Clone(dockerCaps), names...)
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	}
}

// TestDriversOnDemand: the guest loads the drivers of devices that a container has.
func TestDriversOnDemand(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		options []specOption
		script  string
		want    string
	}{
		"tun": {
			[]specOption{withDevice("/dev/net/tun", 10, 200), withCapabilities("CAP_NET_ADMIN")},
			"tunctl -t tap7 >/dev/null && cat /sys/class/net/tap7/tun_flags", "0x1802\n",
		},
		"tun, bound": {
			[]specOption{withDevice("/dev/other", 10, 200), withBind("/dev/net/tun", "/dev/net/tun"), withCapabilities("CAP_NET_ADMIN")},
			"tunctl -t tap7 >/dev/null && cat /sys/class/net/tap7/operstate", "down\n",
		},
		"fuse": {
			[]specOption{withDevice("/dev/fuse", 10, 229), withCapabilities("CAP_SYS_ADMIN")},
			"exec 3<>/dev/fuse && mount -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 none /tmp && grep -c ' /tmp fuse' /proc/mounts && umount /tmp", "1\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			c := e.createStarted(e.bundle(append(tc.options, withScript(tc.script))...))
			c.exits(0)
			if got := c.stdout.String(); got != tc.want {
				t.Errorf("output %q, want %q; stderr %q", got, tc.want, c.stderr)
			}
			e.ok("delete", c.id)
		})
	}
}

// TestModulesOnDemand: the guest's kernel gets modules that it asks for. With RUNTIME=runc the
// host has loaded bridge and veth for its own containers.
func TestModulesOnDemand(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	script := `set -e
		ip link add br0 type bridge
		ip link add v0 type veth peer name v1
		ip link set v0 master br0
		ls /sys/class/net/br0/brif`
	want := "v0\n"
	if isVM {
		script += `
		ip link add d0 type dummy
		ip link add link d0 name d0.5 type vlan id 5
		ls /proc/net/vlan
		cat /proc/net/ip_tables_names | wc -l
		! mount -t ext3 none /tmp 2>/dev/null
		grep -c ext4 /proc/filesystems`
		want += "config\nd0.5\n0\n1\n"
	}
	c := e.createStarted(e.bundle(withCapabilities("CAP_NET_ADMIN", "CAP_SYS_ADMIN"), withScript(script)))
	c.exits(0)
	if got := c.stdout.String(); got != want {
		t.Errorf("output %q, want %q; stderr %q", got, want, c.stderr)
	}
	e.ok("delete", c.id)
}

// TestLoopDevices: a privileged container has the loop devices of its machine.
func TestLoopDevices(t *testing.T) {
	needVM(t) // runc would take one of the host's
	t.Parallel()
	e := newEnv(t)
	c := e.createStarted(e.bundle(withDevice("/dev/loop-control", 10, 237), withCapabilities("CAP_SYS_ADMIN"),
		withScript(`set -e
			truncate -s 1M /tmp/image
			echo content | dd of=/tmp/image conv=notrunc 2>/dev/null
			losetup /dev/loop0 /tmp/image
			head -n 1 /dev/loop0
			losetup -d /dev/loop0`),
		func(s *specs.Spec) {
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/loop0", Type: "b", Major: 7})
			s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		}))
	c.exits(0)
	if got := c.stdout.String(); got != "content\n" {
		t.Errorf("output %q; stderr %q", got, c.stderr)
	}
	e.ok("delete", c.id)
}

// TestOtherDevicesAreRefused: a device node that would mean another device in the guest than on
// the host, or none, is refused.
func TestOtherDevicesAreRefused(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	id := e.id()
	e.do("create", "--bundle", e.bundle(withDevice("/dev/other", 5, 1)), id).
		fails(1, `runc create failed: linux.devices[0]: "/dev/other" is a device of the host (c 5:1): not supported yet`)
	e.do("state", id).fails(1, missing)
}

// loopDevice attaches a file of size bytes to a loop device and returns its path
// and minor number.
func loopDevice(t *testing.T, file string, size int64) (path string, minor int64) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	path = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach: %v: %s", err, out)
		}
	})
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return path, int64(unix.Minor(st.Rdev))
}

// TestBlockDevices: the container can read block devices of the host and, if the rules allow
// it, write them.
func TestBlockDevices(t *testing.T) {
	t.Parallel()
	const loop, size = int64(7), int64(3 << 20)
	e := newEnv(t)
	rw, rwMinor := loopDevice(t, e.path("rw"), size)
	ro, roMinor := loopDevice(t, e.path("ro"), 2*size)
	for path, text := range map[string]string{rw: "of rw\n", ro: "of ro\n"} {
		writeAt(t, path, text)
	}
	mode := os.FileMode(0o640)
	bundle := e.bundle(withScript(`set -e
		for d in rw ro; do head -c 6 /dev/$d; blockdev --getsize64 /dev/$d; stat -c '%a %F' /dev/$d; done
		echo written | dd of=/dev/rw bs=4096 conv=fsync,notrunc 2>/dev/null
		! echo refused | dd of=/dev/ro bs=4096 conv=fsync,notrunc 2>/dev/null
		head -c 8 /dev/sub/rw-again`), func(s *specs.Spec) {
		major := loop
		for _, d := range []struct {
			path, access string
			minor        int64
		}{{"/dev/rw", "rwm", rwMinor}, {"/dev/ro", "r", roMinor}, {"/dev/sub/rw-again", "rwm", rwMinor}} {
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: d.path, Type: "b", Major: loop, Minor: d.minor, FileMode: &mode})
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices,
				specs.LinuxDeviceCgroup{Allow: true, Type: "b", Major: &major, Minor: &d.minor, Access: d.access})
		}
	})
	c := e.createStarted(bundle)
	c.exits(0)
	want := "of rw\n3145728\n640 block special file\nof ro\n6291456\n640 block special file\nwritten\n"
	if got := c.stdout.String(); got != want {
		t.Errorf("output %q, want %q; stderr %q", got, want, c.stderr)
	}
	e.ok("delete", c.id)
	for path, want := range map[string]string{rw: "written\n", ro: "of ro\n"} {
		if got := readFile(t, path)[:len(want)]; got != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
}

// writeAt writes to the beginning of a device and syncs.
func writeAt(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDeviceRules: a device that linux.resources.devices does not allow can be made but not
// opened. The default devices can always be opened.
func TestDeviceRules(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		access string // access to kmsg
		want   string
	}{
		"denied": {"", "null open\nkmsg shut\n"},
		"read":   {"r", "null open\nkmsg open\n"},
		"write":  {"w", "null open\nkmsg shut\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			c := e.createStarted(e.bundle(
				withScript("mknod /dev/made c 1 3 && for d in made:null kmsg:kmsg; do"+
					" if (exec 3</dev/${d%:*}) 2>/dev/null; then echo ${d#*:} open; else echo ${d#*:} shut; fi; done"),
				withCapabilities("CAP_SYSLOG"),
				func(s *specs.Spec) {
					major, minor := int64(1), int64(11)
					s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/kmsg", Type: "c", Major: major, Minor: minor}}
					if tc.access != "" {
						s.Linux.Resources.Devices = append(s.Linux.Resources.Devices,
							specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: tc.access})
					}
				}))
			c.exits(0)
			if got := c.stdout.String(); got != tc.want {
				t.Errorf("output %q, want %q", got, tc.want)
			}
			e.ok("delete", c.id)
		})
	}
}
