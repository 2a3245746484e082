package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/mdlayher/vsock"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/bootimage"
	"github.com/huskvm/husk/hypervisor"
)

// The tests in this file boot a guest, under emulation unless told otherwise. make guest runs
// them. They need
//
// 	HUSK_TEST_KERNEL   a kernel, as husk's settings name it
// 	HUSK_TEST_MODULES  the directory with its modules.dep
// 	HUSK_CACHE         optional: where the kernel may have been unpacked already
// 	HUSK_TEST_QEMU     optional: another qemu-system-x86_64 than the installed one
// 	HUSK_TEST_ACCEL    optional: kvm; it fails where KVM does not run guests
// 	HUSK_TEST_GUEST    optional: testdata/guest, built, for where there is no Go

// bootTimeout allows for a machine whose processors are all busy.
const bootTimeout = 4 * time.Minute

// guestInitrd returns an initramfs with the program in testdata/guest added.
func guestInitrd(t *testing.T, base string) string {
	t.Helper()
	dir := t.TempDir()
	program := os.Getenv("HUSK_TEST_GUEST")
	if program == "" {
		program = filepath.Join(dir, "guest")
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "./testdata/guest")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the test guest: %v\n%s", err, out)
		}
	}
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	archive := bytes.NewBuffer(image)
	archive.Write(make([]byte, (4-len(image)%4)%4)) // the kernel expects each archive at a multiple of 4
	w := cpio.NewWriter(archive)
	if err := w.WriteHeader(&cpio.Header{Name: "test-guest", Mode: cpio.TypeReg | 0o755, Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return write(t, dir, "initrd", archive.String(), 0o600)
}

// guestConfig returns a machine whose init executes the commands of testdata/guest.
func guestConfig(t *testing.T) hypervisor.Config {
	t.Helper()
	settings := bootimage.Settings{Kernel: os.Getenv("HUSK_TEST_KERNEL"), Modules: os.Getenv("HUSK_TEST_MODULES"), CacheDir: os.Getenv("HUSK_CACHE")}
	if settings.Kernel == "" {
		t.Skip("HUSK_TEST_KERNEL is not set: there is no guest to boot; make guest sets it")
	}
	if settings.CacheDir == "" {
		settings.CacheDir = t.TempDir()
	}
	image, err := bootimage.Prepare(t.Context(), settings, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	binary, err := FindBinary(os.Getenv("HUSK_TEST_QEMU"))
	if err != nil {
		t.Fatal(err)
	}
	return hypervisor.Config{
		Binary: binary, Accel: guestAccel(), MemoryMiB: 256, VCPUs: 1,
		Kernel: image.Kernel, Initrd: guestInitrd(t, image.Initrd), Cmdline: "rdinit=/test-guest sysrq_always_enabled=1",
		ChannelPort: "husk.test",
	}
}

func guestAccel() hypervisor.Accel {
	if accel := os.Getenv("HUSK_TEST_ACCEL"); accel != "" {
		return hypervisor.Accel(accel)
	}
	return hypervisor.TCG
}

// guest is a booted VM and a connection to its init.
type guest struct {
	*vm
	conn    net.Conn
	answers *bufio.Reader
}

func boot(t *testing.T, cfg hypervisor.Config) guest {
	t.Helper()
	v := startVM(t, cfg)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", v.Console())
		}
	})
	conn := v.Channel().Serial
	g := guest{v, conn, bufio.NewReader(conn)}
	// This was written long before the guest opened its port.
	if got := g.ask(t, "echo hello"); got != "hello" {
		t.Fatalf("the guest answered %q", got)
	}
	return g
}

func (g guest) ask(t *testing.T, command string) string {
	t.Helper()
	g.tell(t, command)
	answer, err := g.answers.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v; vm: %v; console:\n%s", command, err, g.Err(), g.Console())
	}
	return strings.TrimSuffix(answer, "\n")
}

func (g guest) tell(t *testing.T, command string) {
	t.Helper()
	if err := g.conn.SetDeadline(time.Now().Add(bootTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(g.conn, command+"\n"); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
}

func TestGuestBoots(t *testing.T) {
	for _, vcpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d vcpus", vcpus), func(t *testing.T) {
			cfg := guestConfig(t)
			cfg.VCPUs = vcpus
			g := boot(t, cfg)
			info, err := g.Info(t.Context())
			if err != nil || info.Accel != guestAccel() || info.HostPID <= 0 {
				t.Errorf("Info = %+v, %v", info, err)
			}
			if cpus := g.ask(t, "read /sys/devices/system/cpu/online"); cpus != map[int]string{1: "0", 2: "0-1"}[vcpus] {
				t.Errorf("the guest has cpus %s", cpus)
			}
			if source := g.ask(t, "read /sys/devices/system/clocksource/clocksource0/current_clocksource"); source != "kvm-clock" && !strings.HasPrefix(source, "tsc") {
				t.Errorf("the guest's clock is %s", source)
			}
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", info.HostPID))
			if err != nil || !strings.Contains(string(status), "\nSeccomp:\t2\n") {
				t.Errorf("the vmm is not in its sandbox: %v\n%s", err, status)
			}
			g.tell(t, "poweroff")
			waitDone(t, g, bootTimeout)
			if err := g.Err(); err == nil || err.Error() != "guest powered itself off" {
				t.Errorf("Err = %v", err)
			}
		})
	}
}

func TestGuestVsock(t *testing.T) {
	if ok, reason := ProbeVsock(); !ok {
		t.Skip("no vhost-vsock here: ", reason)
	}
	const port = 1024
	cfg := guestConfig(t)
	cfg.Vsock = true
	cfg.Cmdline += fmt.Sprintf(" test.vsock=%d", port)
	taken := map[uint32]bool{}
	for range 2 {
		v := startVM(t, cfg)
		c := v.Channel()
		if c.Serial == nil || c.VsockCID < 3 || taken[c.VsockCID] {
			t.Errorf("channel is %+v, with %v taken", c, taken)
		}
		taken[c.VsockCID] = true
		conn := dialVsock(t, v, port)
		g := guest{v, conn, bufio.NewReader(conn)}
		want := fmt.Sprintf("hello %d", c.VsockCID)
		if got := g.ask(t, "echo "+want); got != want {
			t.Errorf("the guest answered %q, want %q", got, want)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// dialVsock dials until it succeeds, because nothing tells when the guest listens.
func dialVsock(t *testing.T, v *vm, port uint32) net.Conn {
	t.Helper()
	deadline := time.After(bootTimeout)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := vsock.Dial(v.Channel().VsockCID, port, nil)
		if err == nil {
			return conn
		}
		select {
		case <-tick.C:
		case <-v.Done():
			t.Fatalf("the vm ended: %v; console:\n%s", v.Err(), v.Console())
		case <-deadline:
			t.Fatalf("%v; console:\n%s", err, v.Console())
		}
	}
}

func TestGuestConsole(t *testing.T) {
	g := boot(t, guestConfig(t))
	if got := g.ask(t, "print \x1b[31mred\a\ttab"); got != "printed" {
		t.Fatal(got)
	}
	waitConsole(t, g, "[31mred\ttab\n")
	if got := g.ask(t, "flood"); got != "flooded" {
		t.Fatal(got)
	}
	if n := len(g.Console()); n > 64<<10 {
		t.Errorf("the console holds %d bytes after a flood", n)
	}

	g.tell(t, "crash")
	waitDone(t, g, bootTimeout)
	if err := g.Err(); err == nil || err.Error() != `guest kernel panicked: "Kernel panic - not syncing: sysrq triggered crash"` {
		t.Errorf("Err = %v", err)
	}
	if tail := lastLines(g.Console(), 3, 1000); !strings.Contains(tail, "end Kernel panic - not syncing") &&
		!strings.Contains(tail, "Rebooting immediately") && !strings.Contains(tail, "Kernel Offset") {
		t.Errorf("the console ends with %q", tail)
	}
}

// waitConsole waits until the guest has printed text. The console is not ordered with the
// answers on the channel.
func waitConsole(t *testing.T, v hypervisor.VM, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(v.Console(), text) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%q is not on the console:\n%s", text, v.Console())
		}
	}
}

func TestGuestShare(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("9p passthrough changes owners: needs root")
	}
	cfg := guestConfig(t)
	cfg.ShareDir = filepath.Join(t.TempDir(), "a,readonly=on")
	if err := os.Mkdir(cfg.ShareDir, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg.ShareTag = "test-share"
	write(t, cfg.ShareDir, "note", "from the host", 0o644)
	old := unix.Umask(0o077) // the vmm inherits it
	g := boot(t, cfg)
	unix.Umask(old)

	if got := g.ask(t, "mount test-share"); got != "<nil>" {
		t.Fatalf("mount: %s", got)
	}
	if got := g.ask(t, "read /mnt/note"); got != "from the host" {
		t.Errorf("the guest reads %q", got)
	}
	if got := g.ask(t, "make /mnt/made"); got != "<nil> <nil> <nil> <nil>" {
		t.Fatalf("make: %s", got)
	}
	for name, want := range map[string]os.FileMode{
		"made": 0o666, "made.dir": 0o777 | os.ModeDir, "made.link": 0o777 | os.ModeSymlink,
	} {
		info, err := os.Lstat(filepath.Join(cfg.ShareDir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, info, err, want)
			continue
		}
		if st := info.Sys().(*syscall.Stat_t); name == "made" && (st.Uid != 1234 || st.Gid != 5678) {
			t.Errorf("owner of %s is %d:%d, want 1234:5678", name, st.Uid, st.Gid)
		}
	}

	// QEMU 7.2 refuses special files since its fix of CVE-2023-2861; QEMU 10 makes them again.
	got := g.ask(t, "fifo /mnt/fifo")
	info, err := os.Lstat(filepath.Join(cfg.ShareDir, "fifo"))
	switch {
	case got == "<nil>" && err == nil && info.Mode() == 0o666|os.ModeNamedPipe:
	case got == "no such device or address" && errors.Is(err, os.ErrNotExist) && g.greeted.Version.QEMU.Major < 10:
		t.Logf("known: %s cannot make a special file on a 9p share", g.greeted.Version.QEMU)
	default:
		t.Errorf("fifo: the guest sees %q, the host %v, %v", got, info, err)
	}
}

func TestGuestNICs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("taps need root")
	}
	cfg := guestConfig(t)
	runtime.LockOSThread() // the thread changes its namespace, so it is never unlocked and ends with the test
	handle, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	var files []*os.File
	for i := range 2 {
		name := fmt.Sprintf("tap%d", i)
		tap := &netlink.Tuntap{
			LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP, Queues: 1,
			Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, NonPersist: true,
		}
		if err := netlink.LinkAdd(tap); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(tap); err != nil {
			t.Fatal(err)
		}
		cfg.NICs = append(cfg.NICs, hypervisor.NIC{MAC: fmt.Sprintf("02:00:00:00:00:0%d", i+1), Tap: tap.Fds[0]})
		files = append(files, tap.Fds...)
	}
	g := boot(t, cfg)
	for _, f := range files {
		if err := f.Close(); err != nil { // the vmm has a duplicate
			t.Error(err)
		}
	}
	nics := g.ask(t, "nics")
	t.Log("guest has", nics)
	for i := range 2 {
		mac := fmt.Sprintf("02:00:00:00:00:0%d", i+1)
		at := strings.Index(nics, "="+mac)
		if at < 0 {
			t.Fatalf("the guest has no card %s: %s", mac, nics)
		}
		name := nics[strings.LastIndex(nics[:at], " ")+1 : at]
		frames := sniff(t, fmt.Sprintf("tap%d", i))
		if got := g.ask(t, "up "+name); got != "<nil>" {
			t.Fatalf("up %s: %s", name, got)
		}
		frame := make([]byte, 2048)
		n, err := unix.Read(frames, frame)
		if err != nil || n < 14 {
			t.Fatalf("nothing came out of tap%d: %d, %v", i, n, err)
		}
		if src := fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", frame[6], frame[7], frame[8], frame[9], frame[10], frame[11]); src != mac {
			t.Errorf("tap%d carries a frame of %s, want %s", i, src, mac)
		}
	}
}

// sniff returns a socket that receives the frames arriving on a link, with a receive timeout.
func sniff(t *testing.T, link string) int {
	t.Helper()
	l, err := netlink.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	// On a kernel without this option the socket also receives frames that our own kernel
	// sends, and the test fails on them.
	unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(bootTimeout / time.Second)}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestRealQEMURefusals needs QEMU and no guest.
func TestRealQEMURefusals(t *testing.T) {
	binary, err := FindBinary(os.Getenv("HUSK_TEST_QEMU"))
	if err != nil {
		t.Skip("qemu is not installed: ", err)
	}
	dir := t.TempDir()
	cfg := tcgConfig()
	cfg.ShareDir, cfg.Binary = t.TempDir(), binary
	for name, c := range map[string]struct {
		change func(*hypervisor.Config)
		want   string
	}{
		"no kernel":  {func(c *hypervisor.Config) { c.Kernel = filepath.Join(dir, "vmlinux") }, filepath.Join(dir, "vmlinux")},
		"bad kernel": {func(c *hypervisor.Config) { c.Kernel = write(t, dir, "bad", "#!", 0o600) }, "ended at once"},
		"too much memory": {func(c *hypervisor.Config) {
			c.MemoryMiB, c.Kernel = 1<<30, write(t, dir, "bad", "#!", 0o600)
		}, "give the guest less than"},
		"no share": {func(c *hypervisor.Config) { c.ShareDir = filepath.Join(dir, "gone") }, filepath.Join(dir, "gone")},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			c.change(&cfg)
			refused(t, cfg, c.want)
		})
	}
}

func refused(t *testing.T, cfg hypervisor.Config, want string) {
	t.Helper()
	before := openFDs(t)
	v, err := New().Start(t.Context(), cfg)
	if err == nil {
		stopVM(t, v)
		t.Fatal("Start succeeded")
	}
	if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "qemu") {
		t.Errorf("Start = %v\nwant what qemu said, with %q", err, want)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
