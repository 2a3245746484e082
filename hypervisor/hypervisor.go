// Package hypervisor says what a virtual machine is to husk: its configuration
// as plain data and a small interface to a running one. It knows nothing of
// containers. qemu/ implements it with QEMU, fake/ with pipes for tests.
package hypervisor

import (
	"context"
	"errors"
	"net"
	"os"
)

// Accel is how guest instructions are executed.
type Accel string

// Auto is resolved by a probe before a VM starts (qemu.ProbeAccel); a Config
// that reaches Start holds KVM or TCG.
const (
	Auto Accel = "auto"
	KVM  Accel = "kvm"
	TCG  Accel = "tcg"
)

// ErrTemplateUnsafe is Start's for a Config with a RAMFile that would do as a template,
// but not on this host: the vmm could write into it. The VM can boot.
var ErrTemplateUnsafe = errors.New("guests would not be isolated from each other")

// Config is everything that makes a VM. Paths are host paths; the VM opens them
// before Start returns. Files are borrowed: Start duplicates what it needs and
// the caller closes its own.
type Config struct {
	// Binary is the vmm's executable, absolute, e.g. /usr/bin/qemu-system-x86_64.
	Binary string
	// Machine is the vmm's machine type; empty means microvm.
	Machine string
	Accel   Accel

	MemoryMiB int // guest RAM, at least 64
	VCPUs     int // 1 to 255

	Kernel  string // ELF vmlinux with a PVH entry
	Initrd  string // newc cpio archive, uncompressed
	Cmdline string // kernel parameters beyond those the hypervisor itself needs

	// NICs are virtio-net devices, each on an already open tap.
	NICs []NIC
	// Disks are virtio-blk devices, each a block device of the host that is open
	// already. Not with RAMFile.
	Disks []Disk
	// ShareDir is exported to the guest under ShareTag.
	ShareDir string
	ShareTag string
	// FileCapabilities are the capabilities, by the kernel's names ("CAP_MKNOD"), that
	// the vmm may use in the share when the guest asks it to. Only those that concern
	// files count, and what serving several users takes the vmm has in any case.
	FileCapabilities []string

	// User is who the vmm is on the host; nil: root, without most of root's rights.
	User *User

	// ChannelPort names the virtio-serial port of the agent channel.
	ChannelPort string
	// Vsock asks for a vhost-vsock device besides.
	Vsock bool

	// FreePageReporting gives the guest a balloon device over which it returns
	// the pages it has freed. Not with RAMFile.
	FreePageReporting bool

	// RAMFile backs the guest's RAM when it is not empty, and DeviceState is the
	// file that goes with it. With RAMShared the guest boots, what it writes goes
	// into RAMFile, and Saver.Save writes DeviceState: that is how a template is
	// made; both files are made if need be. Without RAMShared RAMFile is mapped
	// privately and never changes, and the VM wakes up where the one was saved
	// that wrote the two. It must be of the same configuration, but for taps, the
	// share directory and the vsock cid.
	RAMFile     string
	RAMShared   bool
	DeviceState string
}

// NIC is one guest network card.
type NIC struct {
	MAC string   // "02:..", locally administered
	Tap *os.File // /dev/net/tun after TUNSETIFF with IFF_TAP|IFF_NO_PI|IFF_VNET_HDR
}

// Disk is one guest disk.
type Disk struct {
	File     *os.File // open for reading, and unless ReadOnly for writing
	ReadOnly bool
	// Serial is what the guest knows the disk by, at most 20 bytes.
	Serial string
	// LogicalBlock and PhysicalBlock are the sizes, in bytes, in which the device
	// can be and is best accessed: powers of two from 512.
	LogicalBlock, PhysicalBlock int
}

// Channel is the byte path to the agent.
type Channel struct {
	// Serial is the host's end of the virtio-serial port: a socket pair whose other
	// end QEMU alone has. What is written before the guest opens the port waits.
	Serial net.Conn
	// VsockCID is the guest's context id, 0 without a vhost-vsock device. Every
	// process of the host can dial it, and read it in QEMU's command line.
	VsockCID uint32
}

// Info is what a running VM says of itself.
type Info struct {
	HostPID   int    // of the vmm, in the caller's pid namespace
	Accel     Accel  // as the vmm reports it, not as it was asked
	VMM       string // "QEMU 7.2.22"
	Machine   string // "microvm"
	GuestArch string // "x86_64"
}

// VM is a virtual machine whose vmm process runs. Methods are safe for
// concurrent use.
type VM interface {
	// Channel returns the path to the agent. Always the same value.
	Channel() Channel
	// Info asks the vmm; an error means it does not answer.
	Info(ctx context.Context) (Info, error)
	// Console returns the tail of the guest's console and of the vmm's stderr,
	// at most 64 KiB, control characters removed: the guest wrote it.
	Console() string
	// Done is closed when the vmm process has ended and been reaped.
	Done() <-chan struct{}
	// Err says why the vmm ended: nil before Done, and after a stop that Stop asked for.
	Err() error
	// Needs is what the process that has started the VM has to keep of its rights for
	// the VM's sake. Always the same value.
	Needs() Needs
	// SealShare is for what has been mounted below Config.ShareDir since Start, and has
	// come into the share: from then on no setuid bit, device node or program counts
	// there for the vmm, as in the rest of the share, and what is mounted later does
	// not come. It is to be called before the guest runs anything of the container's.
	// Without a share it does nothing.
	SealShare() error
	// Stop ends the vmm at once, without asking the guest, and returns after
	// Done. It is idempotent.
	Stop() error
}

// User has the vmm run as one user in a user namespace, in which each id that is
// mapped is the host's. Its capabilities count for files of these ids alone.
type User struct {
	Namespace *os.File // borrowed
	UID, GID  uint32   // mapped
	// Owns says whether ids of the host are mapped.
	Owns func(uid, gid uint32) bool
}

// Needs is what a VM takes of the process that has started it.
type Needs struct {
	Capabilities []string // by the kernel's names, "CAP_FOWNER"
	Calls        []string // system calls, by theirs
}

// Saver is a VM started with Config.RAMShared: it can become a template.
type Saver interface {
	VM
	// AwaitChannel returns when the guest has opened its virtio-serial port.
	AwaitChannel(ctx context.Context) error
	// Save stops the guest for good and writes the state of its devices.
	Save(ctx context.Context) error
}

// Starter starts VMs. The VM dies with the calling process (parent-death
// signal), whatever kills that.
type Starter interface {
	// Start returns once the vmm process runs and has accepted its
	// configuration; the guest boots on by itself. On error nothing is left.
	Start(ctx context.Context, cfg Config) (VM, error)
}
