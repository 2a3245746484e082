package qemu

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/huskvm/husk/hypervisor"
)

// TranslationMiB bounds the guest code that QEMU keeps translated when it emulates.
// A guest that starts a container has some 20 MiB of it; unbounded, a long life
// makes it a gigabyte.
const TranslationMiB = 256

const (
	machineMicroVM = "microvm"

	// tcgCPU leaves out the two features that tell a kernel to copy memory with rep
	// movsb: TCG emulates that byte by byte, which halves what passes the channel.
	tcgCPU = "max,-erms,-fsrm,-la57"

	ramID     = "ram"     // of the memory backend
	channelID = "channel" // of the agent's virtio-serial port, as events name it

	// maxTransports is how many virtio-mmio devices microvm takes with its second
	// IO-APIC, which it has by default when ACPI is on. One more and QEMU ends
	// with "No 'virtio-bus' bus found for device", which nobody understands.
	maxTransports = 24
)

// handles are the numbers, in the vmm process, of the files it inherits, and what
// belongs to them. They are data so that the argument vector is a pure function.
type handles struct {
	qmp     int
	console int
	channel int // virtio-serial
	vhost   int // /dev/vhost-vsock; -1 without vsock
	taps    []int
	disks   []int

	vsockCID uint32
}

// lend has the vmm inherit the caller's files.
func (h *handles) lend(cfg hypervisor.Config, inherit func(*os.File) int) {
	for _, nic := range cfg.NICs {
		h.taps = append(h.taps, inherit(nic.Tap))
	}
	for _, disk := range cfg.Disks {
		h.disks = append(h.disks, inherit(disk.File))
	}
}

// option is one command line option, "-flag value" or "-flag".
type option struct {
	flag  string
	value string
}

// props is the "driver,key=value,..." syntax of QEMU's option values.
type props struct {
	driver string
	pairs  []string // key, value, key, value, ...
}

// String escapes commas by doubling them: a directory named "a,readonly=off"
// would otherwise set options of its own.
func (p props) String() string {
	var b strings.Builder
	b.WriteString(p.driver)
	for i := 0; i+1 < len(p.pairs); i += 2 {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(p.pairs[i] + "=" + strings.ReplaceAll(p.pairs[i+1], ",", ",,"))
	}
	return b.String()
}

func with(driver string, pairs ...string) string {
	return props{driver: driver, pairs: pairs}.String()
}

// machine is a configuration in QEMU's terms: the stations between a Config and
// an argument vector.
type machine struct {
	accel    string
	cpu      string
	memMiB   int
	ram      string // value of -object
	incoming bool   // wait for a saved device state instead of booting
	vcpus    int
	noPIT    bool
	kernel   string
	initrd   string
	cmdline  string
	chardevs []string
	backends []option // fsdevs, netdevs and block devices
	devices  []string // in the order of their virtio-mmio slots
}

// check refuses what QEMU would refuse in words of its own, or accept and mean
// something else by.
func check(cfg hypervisor.Config) error {
	if cfg.Machine != "" && cfg.Machine != machineMicroVM {
		return fmt.Errorf("machine type %q is not supported: use %q", cfg.Machine, machineMicroVM)
	}
	if cfg.Accel != hypervisor.KVM && cfg.Accel != hypervisor.TCG {
		return fmt.Errorf("accel %q is neither %q nor %q", cfg.Accel, hypervisor.KVM, hypervisor.TCG)
	}
	if cfg.MemoryMiB < 64 {
		return fmt.Errorf("memory of %d MiB is below 64 MiB", cfg.MemoryMiB)
	}
	if cfg.VCPUs < 1 || cfg.VCPUs > 255 {
		return fmt.Errorf("%d vcpus is not between 1 and 255", cfg.VCPUs)
	}
	for _, p := range []struct{ what, path string }{
		{"vmm binary", cfg.Binary}, {"kernel", cfg.Kernel}, {"initrd", cfg.Initrd},
	} {
		if !filepath.IsAbs(p.path) {
			return fmt.Errorf("%s %q is not an absolute path", p.what, p.path)
		}
	}
	if (cfg.ShareDir == "") != (cfg.ShareTag == "") {
		return errors.New("a share needs both a directory and a tag")
	}
	if cfg.ShareDir != "" && !filepath.IsAbs(cfg.ShareDir) {
		return fmt.Errorf("shared directory %q is not an absolute path", cfg.ShareDir)
	}
	if cfg.ChannelPort == "" {
		return errors.New("the agent channel needs a port name")
	}
	if err := checkTemplate(cfg); err != nil {
		return err
	}
	for i, nic := range cfg.NICs {
		if nic.Tap == nil {
			return fmt.Errorf("network card %d has no tap", i)
		}
		if mac, err := net.ParseMAC(nic.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return fmt.Errorf("network card %d: %q is not the MAC address of a card", i, nic.MAC)
		}
	}
	if err := checkDisks(cfg); err != nil {
		return err
	}
	if n := countDevices(cfg); n > maxTransports {
		return fmt.Errorf("%d devices, %d of them network cards and %d disks, but the machine has room for %d", n, len(cfg.NICs), len(cfg.Disks), maxTransports)
	}
	return nil
}

func countDevices(cfg hypervisor.Config) int {
	n := 2 + len(cfg.NICs) + len(cfg.Disks) // channel and rng
	if cfg.Vsock {
		n++
	}
	if cfg.ShareDir != "" {
		n++
	}
	if cfg.FreePageReporting {
		n++
	}
	return n
}

// newMachine is pure. tscKHz is the rate of the host's time stamp counter, 0 if unknown.
func newMachine(cfg hypervisor.Config, h handles, tscKHz int) machine {
	m := machine{
		accel: "kvm", cpu: "host",
		memMiB: cfg.MemoryMiB, vcpus: cfg.VCPUs,
		kernel: cfg.Kernel, initrd: cfg.Initrd, cmdline: kernelCmdline(cfg, tscKHz),
	}
	if cfg.Accel == hypervisor.TCG {
		m.accel, m.cpu = with("tcg", "thread", "multi", "tb-size", strconv.Itoa(TranslationMiB)), tcgCPU
		// A kernel that is told the rate of its clock needs no PIT and never stops it:
		// QEMU would wake up 73 times a second for each idle guest.
		m.noPIT = tscKHz > 0
	}
	// reserve=off: RAM that is larger than what the host has free would be refused,
	// though a guest seldom touches all of it.
	ram := []string{"id", ramID, "size", strconv.Itoa(cfg.MemoryMiB) + "M", "reserve", "off"}
	if cfg.RAMFile == "" {
		m.ram = with("memory-backend-ram", ram...)
	} else {
		share := "off"
		if cfg.RAMShared {
			share = "on"
		}
		m.ram = with("memory-backend-file", append(ram, "mem-path", cfg.RAMFile, "share", share)...)
		m.incoming = !cfg.RAMShared
	}

	m.chardevs = []string{
		with("socket", "id", "qmp", "fd", strconv.Itoa(h.qmp)),
		with("socket", "id", "console", "fd", strconv.Itoa(h.console)),
	}

	// Each device costs the guest time to boot, under emulation most: no others.
	m.chardevs = append(m.chardevs, with("socket", "id", "agent", "fd", strconv.Itoa(h.channel)))
	m.add(with("virtio-serial-device", "id", "serial", "max_ports", "2"))
	m.add(with("virtserialport", "id", channelID, "bus", "serial.0", "chardev", "agent", "name", cfg.ChannelPort))
	if cfg.Vsock {
		m.add(with("vhost-vsock-device", "guest-cid", strconv.FormatUint(uint64(h.vsockCID), 10), "vhostfd", strconv.Itoa(h.vhost)))
	}
	if cfg.ShareDir != "" {
		// passthrough: owner and mode on the host are the guest's, as with a bind
		// mount. remap: the share is a tree of bind mounts of many file systems,
		// whose inode numbers would otherwise collide.
		path := cfg.ShareDir
		if cfg.User != nil {
			path = "." // see restricting.user
		}
		m.backends = append(m.backends, option{"-fsdev", with(
			"local", "id", "share", "path", path, "security_model", "passthrough", "multidevs", "remap",
		)})
		m.add(with("virtio-9p-device", "fsdev", "share", "mount_tag", cfg.ShareTag))
	}
	m.add("virtio-rng-device")
	if cfg.FreePageReporting {
		m.add(with("virtio-balloon-device", "free-page-reporting", "on"))
	}
	for i, nic := range cfg.NICs {
		id := "net" + strconv.Itoa(i)
		m.backends = append(m.backends, option{"-netdev", with("tap", "id", id, "fd", strconv.Itoa(h.taps[i]))})
		// A clone of a template must not announce the template's address; it gets its
		// own from the agent.
		m.add(with("virtio-net-device", "netdev", id, "mac", nic.MAC, "guest_announce", "off"))
	}
	for i, disk := range cfg.Disks {
		m.addDisk(i, disk, h.disks[i])
	}
	return m
}

func (m *machine) add(device string) { m.devices = append(m.devices, device) }

// board is the value of -machine.
func (m machine) board() string {
	pairs := []string{"dump-guest-core", "off"}
	if m.noPIT {
		pairs = append(pairs, "pit", "off")
	}
	return with(machineMicroVM, append(pairs, "memory-backend", ramID)...)
}

// argv returns the arguments after the program's name. ownFilter has QEMU put itself
// under a filter of system calls, once it runs.
func (m machine) argv(ownFilter bool) []string {
	opts := []option{
		{"-nodefaults", ""},
		{"-no-user-config", ""},
		// The guest runs once told to: see confine.
		{"-S", ""},
		{"-display", "none"},
		// With the kernel's reboot=t panic=-1 a panic becomes the end of the process.
		{"-no-reboot", ""},
		// A core dump of the vmm must not hold the guest's memory.
		{"-machine", m.board()},
		{"-accel", m.accel},
		{"-cpu", m.cpu},
		{"-object", m.ram},
		{"-m", strconv.Itoa(m.memMiB)},
		{"-smp", strconv.Itoa(m.vcpus)},
		{"-kernel", m.kernel},
		{"-initrd", m.initrd},
		{"-append", m.cmdline},
	}
	if ownFilter {
		opts = append(opts, option{"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"})
	}
	if m.incoming {
		opts = append(opts, option{"-incoming", "defer"})
	}
	for _, c := range m.chardevs {
		opts = append(opts, option{"-chardev", c})
	}
	opts = append(
		opts,
		option{"-mon", with("", "chardev", "qmp", "mode", "control")},
		option{"-serial", "chardev:console"},
	)
	opts = append(opts, m.backends...)
	for _, d := range m.devices {
		opts = append(opts, option{"-device", d})
	}

	argv := make([]string, 0, 2*len(opts))
	for _, o := range opts {
		argv = append(argv, o.flag)
		if o.value != "" {
			argv = append(argv, o.value)
		}
	}
	return argv
}

// Fingerprint is a digest of the machine that cfg describes with nics network
// cards: two VMs of equal fingerprints differ at most in what a clone of a
// template may have of its own.
func Fingerprint(cfg hypervisor.Config, nics int) string {
	h := handles{}
	if cfg.ShareTag != "" {
		cfg.ShareDir = "/"
	}
	for range nics {
		cfg.NICs = append(cfg.NICs, hypervisor.NIC{})
		h.taps = append(h.taps, 0)
	}
	// The clock rate is read anew for each boot, and a clone keeps its template's.
	const noRate = 0
	sum := sha256.Sum256([]byte(strings.Join(newMachine(cfg, h, noRate).argv(false), "\x00")))
	return hex.EncodeToString(sum[:16])
}

// kernelCmdline puts the caller's parameters last: the kernel takes the last of
// two that contradict each other.
func kernelCmdline(cfg hypervisor.Config, tscKHz int) string {
	params := []string{
		"console=ttyS0", "quiet", "reboot=t", "panic=-1",
		"lsm=landlock,lockdown,yama",
		// The kernel would test its ciphers against known answers at each boot: a
		// tenth of the boot under emulation.
		"cryptomgr.notests",
		// A kernel with more than 3 GiB of RAM keeps 64 MiB for devices that reach no
		// further, of which there are none: each template would hold them.
		"swiotlb=noforce",
	}
	if cfg.Accel == hypervisor.TCG && tscKHz > 0 {
		params = append(
			params,
			// Under emulation the guest's own calibration of the time stamp counter
			// fails about every second time, and it then hangs.
			"tsc_early_khz="+strconv.Itoa(tscKHz),
			// All vcpus read the host's one counter. The kernel cannot know that, and
			// with two of them would keep time by a 4 ms tick instead.
			"tsc=reliable",
			// The kernel gives the timer interrupt 60 ms to show that it works, and
			// panics if all of them fall into a time in which a busy host runs
			// something else. Under KVM it skips this test by itself.
			"no_timer_check",
			// On a busy host it would see lockups where there are none.
			"nowatchdog",
		)
	}
	if cfg.Cmdline != "" {
		params = append(params, cfg.Cmdline)
	}
	return strings.Join(params, " ")
}
