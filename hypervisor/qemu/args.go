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

// TranslationMiB bounds the translated code that QEMU keeps when it emulates, in MiB. A guest
// that starts a container has about 20 MiB of it. Without a bound it grows to a gigabyte over a
// long life.
const TranslationMiB = 256

const (
	machineMicroVM = "microvm"

	// tcgCPU leaves out two features (erms, fsrm) that make a kernel copy memory with rep
	// movsb. TCG emulates that instruction byte by byte, which halves the throughput of the
	// channel.
	tcgCPU = "max,-erms,-fsrm,-la57"

	ramID     = "ram"     // id of the memory backend
	channelID = "channel" // id of the agent's virtio-serial port, as events name it

	// maxTransports is the number of virtio-mmio devices that microvm supports with its second
	// IO-APIC, which it has if ACPI is on, less one: the last device would be in slot 0, whose
	// interrupt never reaches the guest, so that it would not answer.
	maxTransports = 23
)

// handles are the descriptor numbers, in the vmm process, of files that it inherits. They are
// plain data, so that the argument vector can be computed without side effects.
type handles struct {
	qmp     int
	console int
	channel int // virtio-serial
	vhost   int // /dev/vhost-vsock; -1 without vsock
	taps    []int
	disks   []int

	vsockCID uint32
}

// lend makes the vmm inherit the files in cfg and stores their numbers.
func (h *handles) lend(cfg hypervisor.Config, inherit func(*os.File) int) {
	for _, nic := range cfg.NICs {
		h.taps = append(h.taps, inherit(nic.Tap))
	}
	for _, disk := range cfg.Disks {
		h.disks = append(h.disks, inherit(disk.File))
	}
}

// option is one command line option: "-flag value" or "-flag".
type option struct {
	flag  string
	value string
}

// props is a value in QEMU's syntax "driver,key=value,...".
type props struct {
	driver string
	pairs  []string // alternately key and value
}

// String doubles commas, as QEMU's syntax asks for. Otherwise a directory named
// "a,readonly=off" would set an option.
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

// machine is a configuration in QEMU's terms. It is made of a Config, and the argument vector
// is made of it.
type machine struct {
	accel    string
	cpu      string
	memMiB   int
	ram      string // value of the option -object
	incoming bool   // wait for a saved device state instead of booting
	vcpus    int
	noPIT    bool
	kernel   string
	initrd   string
	cmdline  string
	chardevs []string
	backends []option // options for fsdevs, netdevs and block devices
	devices  []string // in the order of their virtio-mmio slots
}

// check refuses configurations that QEMU would refuse with a message that users do not
// understand, or would take for something else.
func check(cfg hypervisor.Config) error {
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
	n := 2 + len(cfg.NICs) + len(cfg.Disks) // the channel and the random number generator
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

// newMachine has no side effects. tscKHz is the rate of the host's time stamp counter, 0 if it
// is unknown.
func newMachine(cfg hypervisor.Config, h handles, tscKHz int) machine {
	m := machine{
		accel: "kvm", cpu: "host",
		memMiB: cfg.MemoryMiB, vcpus: cfg.VCPUs,
		kernel: cfg.Kernel, initrd: cfg.Initrd, cmdline: kernelCmdline(cfg, tscKHz),
	}
	if cfg.Accel == hypervisor.TCG {
		m.accel, m.cpu = with("tcg", "thread", "multi", "tb-size", strconv.Itoa(TranslationMiB)), tcgCPU
		// A kernel that knows the rate of its clock does not need the PIT, and would never stop
		// it. QEMU would wake up 73 times a second for each idle guest.
		m.noPIT = tscKHz > 0
	}
	// reserve=off: with it on the host refuses RAM larger than its free memory, although a
	// guest seldom uses all of it.
	ram := []string{"id", ramID, "size", strconv.Itoa(cfg.MemoryMiB) + "M", "reserve", "off"}
	if cfg.RAMFile == "" {
		m.ram = with("memory-backend-ram", ram...)
	} else {
		share := "off"
		if cfg.RAMShared {
			share = "on"
		}
		m.ram = with("memory-backend-file", append(ram, "mem-path", cfg.RAMFile, "share", share)...)
	}
	m.incoming = isClone(cfg)

	m.chardevs = []string{
		with("socket", "id", "qmp", "fd", strconv.Itoa(h.qmp)),
		with("socket", "id", "console", "fd", strconv.Itoa(h.console)),
	}

	// No other devices, because each one costs time at boot, under emulation most of all.
	m.chardevs = append(m.chardevs, with("socket", "id", "agent", "fd", strconv.Itoa(h.channel)))
	m.add(with("virtio-serial-device", "id", "serial", "max_ports", "2"))
	m.add(with("virtserialport", "id", channelID, "bus", "serial.0", "chardev", "agent", "name", cfg.ChannelPort))
	if cfg.Vsock {
		m.add(with("vhost-vsock-device", "guest-cid", strconv.FormatUint(uint64(h.vsockCID), 10), "vhostfd", strconv.Itoa(h.vhost)))
	}
	if cfg.ShareDir != "" {
		// passthrough: files have the same owner and mode on the host and in the guest, as with
		// a bind mount. multidevs=remap: the share holds mounts of several filesystems, whose
		// inode numbers could be equal.
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
		// A clone must not announce the MAC address of its template. It gets its own from the
		// agent.
		m.add(with("virtio-net-device", "netdev", id, "mac", nic.MAC, "guest_announce", "off"))
	}
	for i, disk := range cfg.Disks {
		m.addDisk(i, disk, h.disks[i])
	}
	return m
}

func (m *machine) add(device string) { m.devices = append(m.devices, device) }

// board returns the value of the option -machine.
func (m machine) board() string {
	pairs := []string{"dump-guest-core", "off"}
	if m.noPIT {
		pairs = append(pairs, "pit", "off")
	}
	return with(machineMicroVM, append(pairs, "memory-backend", ramID)...)
}

// argv returns the arguments after the program's name. With ownFilter QEMU installs a system
// call filter of its own once it runs.
func (m machine) argv(ownFilter bool) []string {
	opts := []option{
		{"-nodefaults", ""},
		{"-no-user-config", ""},
		// The guest does not run before confine was called.
		{"-S", ""},
		{"-display", "none"},
		// Together with the kernel's reboot=t panic=-1 this ends the process at a panic.
		{"-no-reboot", ""},
		// A core dump of the vmm must not contain the guest's memory.
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

// Fingerprint returns a digest of the machine that cfg describes, with nics network cards. Two
// VMs with equal fingerprints differ only in what may differ between a template and its clones.
func Fingerprint(cfg hypervisor.Config, nics int) string {
	h := handles{}
	if cfg.ShareTag != "" {
		cfg.ShareDir = "/"
	}
	for range nics {
		cfg.NICs = append(cfg.NICs, hypervisor.NIC{})
		h.taps = append(h.taps, 0)
	}
	// The rate of the clock is measured at each boot, and a clone keeps that of its template.
	const noRate = 0
	sum := sha256.Sum256([]byte(strings.Join(newMachine(cfg, h, noRate).argv(false), "\x00")))
	return hex.EncodeToString(sum[:16])
}

// kernelCmdline puts the caller's parameters last, because the kernel uses the last of two
// contradicting ones.
func kernelCmdline(cfg hypervisor.Config, tscKHz int) string {
	params := []string{
		"console=ttyS0", "quiet", "reboot=t", "panic=-1",
		"lsm=landlock,lockdown,yama",
		// The kernel would test its ciphers at each boot, which takes a tenth of the boot under
		// emulation.
		"cryptomgr.notests",
		// With more than 3 GiB of RAM the kernel reserves 64 MiB for devices that can address
		// no more. The machine has none, and each template would hold these 64 MiB.
		"swiotlb=noforce",
	}
	if cfg.Accel == hypervisor.TCG {
		// The kernel prints its warnings, too, of which the VM looks for noTimerText.
		params = append(params, "loglevel=5")
	}
	if cfg.Accel == hypervisor.TCG && tscKHz > 0 {
		params = append(
			params,
			// Under emulation the guest's own calibration of the time stamp counter fails about
			// every second time, and the guest then hangs.
			"tsc_early_khz="+strconv.Itoa(tscKHz),
			// All vCPUs read the one counter of the host. The kernel cannot know that: with two
			// vCPUs it would use a tick of 4 ms as its clock.
			"tsc=reliable",
			// The kernel waits 60 ms for the timer interrupt and panics without one, which
			// happens when a busy host runs something else for so long. Under KVM the kernel
			// skips this test itself.
			"no_timer_check",
			// On a busy host the watchdog would report lockups that are none.
			"nowatchdog",
		)
	}
	if cfg.Cmdline != "" {
		params = append(params, cfg.Cmdline)
	}
	if cfg.FreePageReporting {
		// A page that a clone returns comes back with the template's content. A kernel that
		// clears pages when they are freed would take such a page for cleared. By default it
		// clears them when they are used.
		params = append(params, "init_on_free=0")
	}
	return strings.Join(params, " ")
}
