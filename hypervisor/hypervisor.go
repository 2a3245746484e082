// Package hypervisor says what husk needs of a virtual machine: a configuration that is plain
// data, and a small interface to one that runs. The package knows nothing of containers. qemu/
// implements it with QEMU, fake/ inside a test's process.
//
// The life of a VM, in this order:
//
//   - Starter.Start returns when the vmm runs and has accepted the configuration.
//   - The guest boots, or wakes up where a template was saved. VM.Channel is the way to its
//     agent from then on: bytes written before the guest reads are kept.
//   - For a template (Config.RAMShared) only: Saver.AwaitChannel, then Saver.Save, then Stop.
//   - VM.Stop ends it, or it ends by itself. VM.Done is closed when its process is reaped; Err
//     and Console say why it has ended, and what the guest wrote to the channel can still be
//     read.
//   - The caller closes Channel().Serial at last.
//
// A VM also ends when the process that called Start ends, however that happens.
package hypervisor

import (
	"context"
	"errors"
	"net"
	"os"
)

// Accel says how the guest's instructions are executed.
type Accel string

// Auto is resolved before a VM starts, by qemu.ProbeAccel. A Config given to Start has KVM or
// TCG.
const (
	Auto Accel = "auto"
	KVM  Accel = "kvm"
	TCG  Accel = "tcg"
)

// ErrTemplateUnsafe is returned by Start for a Config with a RAMFile if the vmm could write
// into that template on this host. The VM can be booted instead.
var ErrTemplateUnsafe = errors.New("guests would not be isolated from each other")

// ErrNoTimer is the reason for the end of a VM whose guest, which booted under emulation, has no
// timer. Its kernel measures the timer as it boots, fails if the host runs something else for
// some 100 ms at this moment, and would hang for ever. Another VM can be booted instead.
var ErrNoTimer = errors.New("the host was so busy that the guest's kernel could not measure its timer")

// MaxBoots is how often Boot boots.
const MaxBoots = 3

// Boot calls boot, which boots a VM, and calls it again if it returns ErrNoTimer, at most
// MaxBoots times in all.
func Boot(boot func() error) (err error) {
	for range MaxBoots {
		if err = boot(); !errors.Is(err, ErrNoTimer) {
			break
		}
	}
	return err
}

// Config describes a VM. Paths are host paths, and the VM opens them before Start returns. Open
// files stay the caller's: Start duplicates what it needs, and the caller closes its own.
type Config struct {
	// Binary is the absolute path of the vmm's executable, such as /usr/bin/qemu-system-x86_64.
	Binary string
	Accel  Accel

	MemoryMiB int // size of the guest's RAM, at least 64
	VCPUs     int // 1 to 255

	Kernel  string // an ELF vmlinux with a PVH entry
	Initrd  string // an uncompressed newc cpio archive
	Cmdline string // kernel parameters in addition to those of the hypervisor

	// NICs are virtio-net devices, each with an open tap.
	NICs []NIC
	// Disks are virtio-blk devices, each with an open block device of the host. They cannot be
	// used together with RAMFile.
	Disks []Disk
	// ShareDir is the directory that is exported to the guest under the tag ShareTag.
	ShareDir string
	ShareTag string
	// FileCapabilities are capabilities, by names such as "CAP_MKNOD", that the vmm may use on
	// files of the share when the guest asks for it. Capabilities that do not concern files are
	// ignored. Those that a file server for several users needs, the vmm has in any case.
	FileCapabilities []string

	// User is the user that the vmm runs as on the host. If it is nil, the vmm is root with few
	// capabilities.
	User *User

	// ChannelPort is the name of the virtio-serial port of the agent channel.
	ChannelPort string
	// Vsock adds a vhost-vsock device.
	Vsock bool

	// FreePageReporting adds a balloon device through which the guest returns pages that it has
	// freed.
	FreePageReporting bool

	// RAMFile, if not empty, is a file that backs the guest's RAM, and DeviceState is the file
	// that belongs to it.
	//
	// With RAMShared the guest boots and writes its RAM into RAMFile, and Saver.Save writes
	// DeviceState: so a template is made. Files that do not exist are created.
	//
	// Without RAMShared RAMFile is mapped privately and never changes, and the VM wakes up
	// where the VM that wrote both files was saved. The two Configs must be equal except for
	// taps, the share directory and the vsock cid.
	RAMFile     string
	RAMShared   bool
	DeviceState string
}

// NIC is one network card of the guest.
type NIC struct {
	MAC string   // "02:..", locally administered
	Tap *os.File // /dev/net/tun after TUNSETIFF with IFF_TAP|IFF_NO_PI|IFF_VNET_HDR
}

// Disk is one disk of the guest.
type Disk struct {
	File     *os.File // open for reading and, unless ReadOnly, for writing
	ReadOnly bool
	// Serial is the serial number by which the guest finds the disk, at most 20 bytes.
	Serial string
	// LogicalBlock and PhysicalBlock are the smallest and the best unit of access to the
	// device, in bytes. Both are powers of two, at least 512.
	LogicalBlock, PhysicalBlock int
}

// Channel is the byte path between host and agent.
type Channel struct {
	// Serial is the host's end of the virtio-serial port. It is a socket whose other end only
	// QEMU has. Bytes written before the guest opens the port are kept.
	Serial net.Conn
	// VsockCID is the guest's context id, 0 without a vhost-vsock device. Every process of the
	// host can read it in QEMU's command line and dial it.
	VsockCID uint32
}

// Info is what a running vmm tells about itself.
type Info struct {
	HostPID int   // pid of the vmm in the caller's pid namespace
	Accel   Accel // what the vmm reports, not what was asked for
}

// VM is a virtual machine whose vmm process was started. All methods may be called by many
// goroutines at once.
type VM interface {
	// Channel returns the path to the agent. It always returns the same value.
	Channel() Channel
	// Info asks the vmm. An error means that the vmm does not answer.
	Info(ctx context.Context) (Info, error)
	// Console returns the end of what the guest wrote to its console and the vmm to its stderr,
	// at most 64 KiB. Control characters are removed, because the guest is not trusted.
	Console() string
	// Done returns a channel that is closed when the vmm process has ended and been reaped.
	Done() <-chan struct{}
	// Err returns why the vmm has ended. It returns nil before Done is closed, and after an end
	// that Stop has caused.
	Err() error
	// Needs returns the capabilities and system calls that the process which has started the VM
	// must not give up. It always returns the same value.
	Needs() Needs
	// SealShare restricts what has been mounted below Config.ShareDir since Start and so has
	// appeared in the share: no setuid bit, device node or executable counts there for the vmm,
	// as in the rest of the share. What is mounted later does not appear in the share any more.
	// Call it before the guest runs anything of the container. Without a share it does nothing.
	SealShare() error
	// Stop ends the vmm at once, without asking the guest, and returns after Done is closed. It
	// may be called again.
	Stop() error
}

// User makes the vmm run as one user of a user namespace. The vmm's capabilities apply only to
// files whose owner is mapped there.
type User struct {
	Namespace *os.File // stays the caller's
	UID, GID  uint32   // ids in the namespace
	// Owns says whether these ids of the host are mapped in the namespace.
	Owns func(uid, gid uint32) bool
}

// Needs is what a VM needs of the process that has started it.
type Needs struct {
	Capabilities []string // by the kernel's names, "CAP_FOWNER"
	Calls        []string // names of system calls
}

// Saver is a VM that was started with Config.RAMShared and can become a template.
type Saver interface {
	VM
	// AwaitChannel returns when the guest has opened its virtio-serial port.
	AwaitChannel(ctx context.Context) error
	// Save stops the guest for ever and writes the state of its devices to Config.DeviceState.
	Save(ctx context.Context) error
}

// Starter starts VMs. A VM ends when the process that called Start ends, also by SIGKILL.
type Starter interface {
	// Start returns when the vmm process runs and has accepted its configuration. The guest
	// goes on booting. After an error nothing is left of the VM. ctx bounds Start only.
	Start(ctx context.Context, cfg Config) (VM, error)
}
