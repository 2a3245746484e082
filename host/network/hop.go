package network

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A hop is a pair of virtual interfaces (veth) between a tap and the container's interface. A
// guest sends each frame with a header that asks the host to compute a checksum and write it at
// a place of the guest's choice, or to cut the frame into segments. The kernel does this after
// all filters of tc, just before a driver that cannot do it itself takes the frame. So behind a
// filter on the tap a hostile guest could still change the sender of a frame. The entry of a
// hop has no offloads, so the kernel finishes each frame before the frame enters. The
// anti-spoofing filter is on the exit and sees the frame that is sent.
const (
	hopEntry = "in"  // husk0in: frames of the tap husk0 enter here
	hopExit  = "out" // husk0out

	// hopMTU is the largest MTU, because the MTU of the container's interface is the limit.
	hopMTU = 65535
)

// makeHop makes the hop of a tap, with both ends down. It replaces a hop of the same name that
// a killed supervisor has left.
func makeHop(tap string) (entry, exit netlink.Link, err error) {
	veth := &netlink.Veth{
		LinkAttrs: netlink.NewLinkAttrs(), PeerName: tap + hopExit, PeerMTU: hopMTU, PeerNumTxQueues: 1, PeerNumRxQueues: 1,
	}
	veth.Name, veth.MTU, veth.NumTxQueues, veth.NumRxQueues = tap+hopEntry, hopMTU, 1, 1
	err = netlink.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		if err = removeHop(veth); err == nil {
			err = netlink.LinkAdd(veth)
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil, fmt.Errorf("add hop %s: the kernel needs CONFIG_VETH (module veth), or the setting anti_spoofing = \"off\": %w", veth.Name, err)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("add hop %s: %w", veth.Name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeHop(veth))
		}
	}()
	if entry, err = netlink.LinkByName(veth.Name); err != nil {
		return nil, nil, fmt.Errorf("look up hop: %w", err)
	}
	if exit, err = netlink.LinkByName(veth.PeerName); err != nil {
		return nil, nil, fmt.Errorf("look up hop: %w", err)
	}
	for _, end := range []netlink.Link{entry, exit} {
		if err := silence(end); err != nil {
			return nil, nil, err
		}
	}
	if err := withoutOffloads(veth.Name, veth.PeerName); err != nil {
		return nil, nil, err
	}
	return entry, exit, nil
}

// removeHop removes both ends of a hop, given one of them. It is no error if they are gone.
func removeHop(end netlink.Link) error {
	if err := netlink.LinkDel(end); err != nil && !isGone(err) {
		return fmt.Errorf("remove hop %s: %w", end.Attrs().Name, err)
	}
	return nil
}

// removeStaleHops removes the hops whose tap does not exist or has one of the given interface
// indexes.
func removeStaleHops(gone map[int]bool) error {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	live := map[string]bool{}
	for _, link := range links {
		if isOurTap(link) && !gone[link.Attrs().Index] {
			live[link.Attrs().Name] = true
		}
	}
	var errs []error
	for _, link := range links {
		if tap := tapOfHop(link); tap != "" && !live[tap] {
			errs = append(errs, removeHop(link))
		}
	}
	return errors.Join(errs...)
}

// tapOfHop returns the name of the tap to whose hop the link belongs; "" if it is no end of a
// hop.
func tapOfHop(link netlink.Link) string {
	name := link.Attrs().Name
	if link.Type() != "veth" || !strings.HasPrefix(name, tapPrefix) {
		return ""
	}
	for _, end := range []string{hopEntry, hopExit} {
		if tap, ok := strings.CutSuffix(name, end); ok {
			return tap
		}
	}
	return ""
}

// featureWords is how many words of 32 features there is room for. Kernels have two.
const featureWords = 8

// features is the kernel's struct ethtool_gfeatures or ethtool_sfeatures, depending on word.
type features[word any] struct {
	command, size uint32
	words         [featureWords]word
}

type gotFeatures struct{ available, requested, active, neverChanged uint32 }

type wantedFeatures struct{ valid, requested uint32 }

// withoutOffloads turns off everything that the driver of an interface can do in place of the
// kernel: checksums, segments, VLAN tags. The kernel then does it before it passes a frame to
// the driver. If receiver is not empty, that interface joins the segments of a TCP connection
// again (GRO), because on the rest of its way a segment costs as much CPU time as a large
// frame.
func withoutOffloads(name, receiver string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("turn off offloads of %s: %w", name, err)
	}
	defer unix.Close(fd)
	before, err := readFeatures(fd, name)
	if err != nil {
		return err
	}
	wanted := features[wantedFeatures]{command: unix.ETHTOOL_SFEATURES, size: before.size}
	for i, w := range before.words {
		wanted.words[i].valid = w.available &^ w.neverChanged
	}
	if err := ethtool(fd, name, unsafe.Pointer(&wanted)); err != nil {
		return fmt.Errorf("turn off offloads of %s: %w", name, err)
	}
	after, err := readFeatures(fd, name)
	if err != nil {
		return err
	}
	for i, w := range after.words {
		if left := w.active & w.available &^ w.neverChanged; left != 0 {
			return fmt.Errorf("turn off offloads of %s: the kernel keeps features %#x of word %d", name, left, i)
		}
	}
	if receiver == "" {
		return nil
	}
	gro := [2]uint32{unix.ETHTOOL_SGRO, 1}
	if err := ethtool(fd, receiver, unsafe.Pointer(&gro)); err != nil {
		return fmt.Errorf("turn on GRO of %s: %w", receiver, err)
	}
	return nil
}

func readFeatures(fd int, name string) (*features[gotFeatures], error) {
	got := &features[gotFeatures]{command: unix.ETHTOOL_GFEATURES, size: featureWords}
	if err := ethtool(fd, name, unsafe.Pointer(got)); err != nil {
		return nil, fmt.Errorf("read offloads of %s: %w", name, err)
	}
	return got, nil
}

// ethtool makes the ioctl SIOCETHTOOL. command is a struct that begins with the command's number.
func ethtool(fd int, name string, command unsafe.Pointer) error {
	request := struct {
		name    [unix.IFNAMSIZ]byte
		command unsafe.Pointer
		_       [16]byte
	}{command: command}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}
