package network

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Move moves an interface of the caller's network namespace into another, as name,
// or with its own if that is empty. It keeps its MTU, MAC and global addresses, and
// is up there. A physical one comes back by itself when the namespace ends.
func Move(device, name string, namespace *os.File) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("move network device %s: %w", device, err)
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("move network device %s: list addresses: %w", device, err)
	}
	if name == "" {
		name = device
	}
	// One that is up can't be renamed, on older kernels.
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("move network device %s: set down: %w", device, err)
	}
	index := link.Attrs().Index
	if err := moveLink(index, name, namespace); err != nil {
		return fmt.Errorf("move network device %s: %w", device, err)
	}
	err = inNamespace(int(namespace.Fd()), func() error {
		moved, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range addresses {
			if a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&unix.IFA_F_PERMANENT == 0 {
				continue
			}
			// The label has the name that the interface had.
			err := netlink.AddrAdd(moved, &netlink.Addr{IPNet: a.IPNet, Scope: a.Scope, Broadcast: a.Broadcast, Peer: a.Peer})
			if err != nil {
				return fmt.Errorf("add address %s: %w", a.IPNet, err)
			}
		}
		return netlink.LinkSetUp(moved)
	})
	if err != nil {
		return fmt.Errorf("move network device %s: %w", device, err)
	}
	return nil
}

// moveLink moves and renames in one step: the name may be taken in the caller's
// namespace, as eth0 is.
func moveLink(index int, name string, namespace *os.File) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(index)
	request.AddData(message)
	request.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(namespace.Fd()))))
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
