package network

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Move moves an interface from the caller's network namespace into another one, under a new
// name or, if name is empty, under its own. There it is up, with the same MTU, MAC address and
// global addresses. A physical interface comes back by itself when the namespace ends.
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
	// Older kernels do not rename an interface that is up.
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
			// The address's label is left out, because it contains the old name.
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

// moveLink moves and renames in one request, because the new name, such as eth0, may exist in
// the caller's namespace.
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
