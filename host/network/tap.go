package network

import (
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
	// tapPrefix begins the name of each tap of ours: husk0, husk1... Scan knows
	// by it what not to hand to a guest.
	tapPrefix = "husk"
	// maxTaps is a sanity limit; the settings file allows fewer.
	maxTaps = 32
)

// ErrHostNamespace is OpenTaps's refusal to work in the network namespace of
// the machine itself: joining its interfaces would cut the machine off.
var ErrHostNamespace = errors.New("the host's own network cannot be shared with a virtual machine: give the container a network (docker run -p publishes its ports), or none")

// Tap is the host's end of one guest network card.
type Tap struct {
	Name  string // in the network namespace, e.g. "husk0"
	Index int    // interface index there; what Leave wants to know
	// MAC is for the guest's card, not the tap's own: locally administered, and
	// the same in every VM for the n-th card, because the card of a VM that wakes
	// up from a memory template still has the template's. No other machine ever
	// sees it: the card takes its interface's address before it is brought up.
	MAC string
	// File holds the tap open. The tap is gone when the last duplicate of it is
	// closed, so once the vmm has its own this one should be closed.
	File *os.File
}

// OpenTaps makes n taps, 0 to 32, in the network namespace of the calling
// thread. They are down until Join. /dev/net/tun is opened in the current mount
// namespace and needs the permission of the current device cgroup, so call this
// before leaving either. On error nothing is left.
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

// CloseTaps closes the taps' files. A tap whose file is closed already is no
// matter.
func CloseTaps(taps []*Tap) {
	for _, t := range taps {
		// Close fails only where the file is closed already.
		_ = t.File.Close()
	}
}

func openTap(mac string) (*Tap, error) {
	// Not os.OpenFile: Go would register the descriptor with epoll, which a tun
	// file without an interface does not support.
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		hint := ""
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			hint = " (is the tun module loaded? modprobe tun)"
		}
		return nil, fmt.Errorf("open %s: %w%s", tunDevice, err, hint)
	}
	tap, err := setUpTap(fd, mac)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return tap, nil
}

func setUpTap(fd int, mac string) (*Tap, error) {
	// The kernel replaces %d by the first free number, atomically: two
	// supervisors in one namespace (a pod) never get the same tap.
	req, err := unix.NewIfreq(tapPrefix + "%d")
	if err != nil {
		return nil, fmt.Errorf("name tap: %w", err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, fmt.Errorf("create tap: %w", err)
	}
	name := req.Name()
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("look up tap %s: %w", name, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("set tap %s non-blocking: %w", name, err)
	}
	return &Tap{
		Name:  name,
		Index: link.Attrs().Index,
		MAC:   mac,
		File:  os.NewFile(uintptr(fd), tunDevice+":"+name),
	}, nil
}

// cardMAC is the address of the guest's card i: 02, "husk" and the number.
func cardMAC(i int) string {
	return net.HardwareAddr{0x02, 'h', 'u', 's', 'k', byte(i)}.String()
}

// isOurTap tells a tap of husk's, this container's or another's, from those
// that are a namespace's way out (slirp4netns's tap0).
func isOurTap(link netlink.Link) bool {
	return link.Type() == "tuntap" && strings.HasPrefix(link.Attrs().Name, tapPrefix)
}

// refuseHostNamespace returns ErrHostNamespace in the namespace the machine
// booted with and in that of PID 1, which differ where husk itself is in a
// container. Neither test finds both: PID 1 may have more capabilities than
// root has here, and then its namespaces are not to be looked at.
func refuseHostNamespace() error {
	// The kernel has this setting in its first network namespace only, and
	// /proc/sys/net is that of the thread that looks.
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
