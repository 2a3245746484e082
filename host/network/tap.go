package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	tunDevice = "/dev/net/tun"
	// tapPrefix begins the names of husk's taps: husk0, husk1 and so on. By it Scan recognizes
	// interfaces that are not for a guest.
	tapPrefix = "husk"
	// maxTaps bounds the taps of one container. The settings file has a lower bound.
	maxTaps = 32
)

// ErrHostNamespace is returned by OpenTaps in the network namespace of the machine itself.
// Joining its interfaces to a guest would cut the machine off.
var ErrHostNamespace = errors.New("the host's own network cannot be shared with a virtual machine: give the container a network (docker run -p publishes its ports), or none")

// Tap is the host's end of one network card of the guest.
type Tap struct {
	Name  string // in the network namespace, e.g. "husk0"
	Index int    // interface index in the namespace; Leave needs it
	// MAC is the address that the guest's card has at boot, not the tap's. It is locally
	// administered, and the same in every VM for the card with this number, because a VM that
	// wakes up from a template still has the template's. No other machine sees it: the card
	// gets its interface's address before it is up.
	MAC string
	// sumsHeader: the guest can make the host's kernel write a checksum into the Ethernet
	// header of a frame.
	sumsHeader bool
	// File keeps the tap open. Unless Persist was called the tap ends when its last duplicate
	// is closed, so close File when the vmm has its own.
	File *os.File
}

// Persist makes the tap outlive its descriptors, until its network namespace ends. Use it only
// if the namespace ends with the container. When the last descriptor of another tap is closed,
// the kernel unregisters the interface, which takes 35 to 45 ms for two, and everybody who
// waits for the container waits for that. With the namespace the kernel does this later, for
// all interfaces at once, and nobody waits.
func (t *Tap) Persist() error {
	conn, err := t.File.SyscallConn()
	if err != nil {
		return fmt.Errorf("keep tap %s: %w", t.Name, err)
	}
	var ioctlErr error
	if err := conn.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1)
	}); err != nil {
		ioctlErr = err
	}
	if ioctlErr != nil {
		return fmt.Errorf("keep tap %s: %w", t.Name, ioctlErr)
	}
	return nil
}

// RemoveUnheldTaps removes husk's taps in the network namespace of the calling thread that no
// process has open, and their hops. They are left by a container that has called Persist and
// has ended, while somebody else has kept its namespace.
func RemoveUnheldTaps() error {
	if err := refuseHostNamespace(); err != nil {
		return fmt.Errorf("remove taps: %w", err)
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, link := range links {
		if !isOurTap(link) {
			continue
		}
		if err := removeUnheld(link.Attrs().Name); err != nil {
			return err
		}
	}
	return removeStaleHops(nil)
}

// removeUnheld attaches to the tap with this name, and removes it by closing that descriptor.
// The kernel refuses to attach (EBUSY) if a process has the tap open.
func removeUnheld(name string) error {
	fd, err := openTun()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	switch _, err := attach(fd, name); {
	case errors.Is(err, unix.EBUSY), isGone(err):
		return nil
	case err != nil:
		return fmt.Errorf("attach to tap %s: %w", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0); err != nil {
		return fmt.Errorf("remove tap %s: %w", name, err)
	}
	return nil
}

// OpenTaps makes n taps, 0 to 32, in the network namespace of the calling thread. They are down
// until Join. It opens /dev/net/tun in the present mount namespace and device cgroup, so call
// it before leaving either. After an error no tap is left.
func OpenTaps(n int) (taps []*Tap, err error) {
	if n < 0 || n > maxTaps {
		return nil, fmt.Errorf("open taps: %d is not between 0 and %d", n, maxTaps)
	}
	if n == 0 {
		return nil, nil
	}
	if err := refuseHostNamespace(); err != nil {
		return nil, fmt.Errorf("open taps: %w", err)
	}
	defer func() {
		if err != nil {
			CloseTaps(taps)
			taps = nil
		}
	}()
	for i := range n {
		tap, err := openTap(cardMAC(i))
		if err != nil {
			return taps, err
		}
		taps = append(taps, tap)
	}
	return taps, nil
}

// CloseTaps closes the files of the taps. A file that is closed already is ignored.
func CloseTaps(taps []*Tap) {
	for _, t := range taps {
		// Close fails only if the file is closed already.
		_ = t.File.Close()
	}
}

func openTap(mac string) (*Tap, error) {
	fd, err := openTun()
	if err != nil {
		return nil, err
	}
	tap, err := setUpTap(fd, mac)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return tap, nil
}

// openTun does not use os.OpenFile, which would register the descriptor with epoll; a tun file
// without an interface does not support that.
func openTun() (int, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		hint := ""
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			hint = " (is the tun module loaded? modprobe tun)"
		}
		return -1, fmt.Errorf("open %s: %w%s", tunDevice, err, hint)
	}
	return fd, nil
}

// attach makes fd the tap of this name, and makes the tap if there is none. It returns the
// name, in which the kernel replaces %d.
func attach(fd int, name string) (string, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return "", err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return "", err
	}
	return req.Name(), nil
}

func setUpTap(fd int, mac string) (*Tap, error) {
	// The kernel replaces %d by the first free number, atomically, so two supervisors in one
	// namespace (a pod) never get the same tap.
	name, err := attach(fd, tapPrefix+"%d")
	if err != nil {
		return nil, fmt.Errorf("create tap: %w", err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("look up tap %s: %w", name, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("set tap %s non-blocking: %w", name, err)
	}
	return &Tap{
		Name:       name,
		Index:      link.Attrs().Index,
		MAC:        mac,
		sumsHeader: sumsHeader(fd),
		File:       os.NewFile(uintptr(fd), tunDevice+":"+name),
	}, nil
}

// sumsHeader says whether the kernel would write a checksum over the sender's MAC address. It
// sends a frame that asks for such a checksum. The tap is down, so the kernel never takes the
// frame and returns EIO. Linux 6.12 and kernels with its fix return EINVAL, because they refuse
// the header.
func sumsHeader(fd int) bool {
	header := make([]byte, 10) // struct virtio_net_hdr
	header[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(header[8:], offSourceMAC)
	_, err := unix.Write(fd, append(header, make([]byte, 60)...))
	return !errors.Is(err, unix.EINVAL)
}

// cardMAC returns the address of the guest's card number i: 02, the letters "husk", and i.
func cardMAC(i int) string {
	return net.HardwareAddr{0x02, 'h', 'u', 's', 'k', byte(i)}.String()
}

// isOurTap tells husk's taps, of any container, from taps that connect a namespace to the
// outside, such as slirp4netns's tap0.
func isOurTap(link netlink.Link) bool {
	return link.Type() == "tuntap" && strings.HasPrefix(link.Attrs().Name, tapPrefix)
}

// refuseHostNamespace returns ErrHostNamespace in the network namespace in which the machine
// booted and in that of PID 1. The two differ if husk runs in a container. Both tests are
// needed: if PID 1 has more capabilities than this process, its namespace cannot be read.
func refuseHostNamespace() error {
	// The kernel has this setting only in its initial network namespace, and /proc/sys/net
	// shows the namespace of the thread that reads.
	err := unix.Access("/proc/sys/net/core/dev_weight", unix.F_OK)
	if err == nil {
		return ErrHostNamespace
	}
	if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("look for the host's network settings: %w", err)
	}
	var own, init unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return fmt.Errorf("stat own network namespace: %w", err)
	}
	err = unix.Stat("/proc/1/ns/net", &init)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stat network namespace of PID 1: %w", err)
	}
	if own.Dev == init.Dev && own.Ino == init.Ino {
		return ErrHostNamespace
	}
	return nil
}
