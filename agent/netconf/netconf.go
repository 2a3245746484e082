// Package netconf configures a network namespace of the guest with what the host found in the
// container's: interfaces, addresses, routes and neighbours, settings and packet filter.
package netconf

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/huskvm/husk/protocol"
)

// addrGenNone (IN6_ADDR_GEN_MODE_NONE) stops the kernel from making a link-local address. The
// host's interface has one or has none, and the guest gets the same.
const addrGenNone = 1

// Cards holds the network cards of one container. The zero value has none. It must not be used
// by several goroutines at once.
type Cards struct {
	byMAC map[string]*card // by the MAC address that the card had at boot
}

type card struct {
	index int                 // interface index in the container's namespace
	given *protocol.Interface // the configuration that it got last
}

// Apply configures exactly these interfaces in the network namespace at nsPath: a card that is
// no longer among them moves back to the agent's namespace, a new one moves in, and one that
// differs is changed. It brings lo up. An empty nsPath means the caller's namespace. After an
// error, changes made before it stay.
func (c *Cards) Apply(nsPath string, interfaces []*protocol.Interface) error {
	root, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer root.Close()
	target := root
	move := func(netlink.Link) error { return nil }
	if nsPath != "" {
		ns, err := netns.GetFromPath(nsPath)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", nsPath, err)
		}
		defer func() { _ = ns.Close() }()
		if target, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink in network namespace %s: %w", nsPath, err)
		}
		defer target.Close()
		move = func(l netlink.Link) error { return root.LinkSetNsFd(l, int(ns)) }
	}
	if err := loUp(target); err != nil {
		return err
	}
	if err := c.giveBack(target, interfaces); err != nil {
		return err
	}
	nics, err := c.prepare(root, target, move, interfaces)
	if err != nil {
		return err
	}
	for i, in := range interfaces {
		if nics[i] == "" {
			continue // unchanged
		}
		if err := allowIPv6(nsPath, nics[i], in.Addresses); err != nil {
			return fmt.Errorf("interface %s: %w", in.Name, err)
		}
		if err := configure(target, nics[i], in); err != nil {
			return fmt.Errorf("interface %s: %w", in.Name, err)
		}
		link, err := target.LinkByName(in.Name)
		if err != nil {
			return fmt.Errorf("interface %s: find: %w", in.Name, err)
		}
		if c.byMAC == nil {
			c.byMAC = make(map[string]*card)
		}
		c.byMAC[in.NicMac] = &card{index: link.Attrs().Index, given: in}
	}
	return nil
}

// giveBack moves the cards that are not among interfaces back to the agent's namespace, and
// restores their names and MAC addresses.
func (c *Cards) giveBack(target *netlink.Handle, interfaces []*protocol.Interface) error {
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open the agent's network namespace: %w", err)
	}
	defer func() { _ = home.Close() }()
	for nicMAC, card := range c.byMAC {
		if slices.ContainsFunc(interfaces, func(in *protocol.Interface) bool { return in.NicMac == nicMAC }) {
			continue
		}
		delete(c.byMAC, nicMAC)
		link, err := target.LinkByIndex(card.index)
		if err != nil {
			return fmt.Errorf("take back %s: %w", card.given.Name, err)
		}
		mac, err := net.ParseMAC(nicMAC)
		if err != nil {
			return err
		}
		if err := target.LinkSetDown(link); err != nil {
			return fmt.Errorf("take down %s: %w", card.given.Name, err)
		}
		if err := target.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("take back %s: %w", card.given.Name, err)
		}
		if err := target.LinkSetName(link, passingName(mac)); err != nil {
			return fmt.Errorf("take back %s: %w", card.given.Name, err)
		}
		if err := target.LinkSetNsFd(link, int(home)); err != nil {
			return fmt.Errorf("take back %s: %w", card.given.Name, err)
		}
	}
	return nil
}

// passingName returns the name of a card while it has no configuration. Otherwise a card that
// is still called eth0 would prevent another from getting that name.
func passingName(nicMAC net.HardwareAddr) string {
	return fmt.Sprintf("husk%x", []byte(nicMAC[3:]))
}

func loUp(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// prepare moves every new card in, and removes from the other cards what they no longer have.
// It returns the temporary name of each card, "" for one that does not change.
func (c *Cards) prepare(root, target *netlink.Handle, move func(netlink.Link) error, interfaces []*protocol.Interface) ([]string, error) {
	links, err := root.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, in := range interfaces {
		name, err := c.prepareOne(root, target, move, links, in)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", in.Name, err)
		}
		names = append(names, name)
	}
	return names, nil
}

func (c *Cards) prepareOne(root, target *netlink.Handle, move func(netlink.Link) error, links []netlink.Link, in *protocol.Interface) (string, error) {
	mac, err := net.ParseMAC(in.NicMac)
	if err != nil {
		return "", err
	}
	if len(mac) != 6 {
		return "", fmt.Errorf("address %s is not Ethernet's", mac)
	}
	name := passingName(mac)
	if old := c.byMAC[in.NicMac]; old != nil {
		if proto.Equal(old.given, in) {
			return "", nil
		}
		return vacate(target, old, in, name)
	}
	n := slices.IndexFunc(links, func(l netlink.Link) bool {
		return slices.Equal(l.Attrs().HardwareAddr, mac)
	})
	if n < 0 {
		return "", fmt.Errorf("no network card has address %s", in.NicMac)
	}
	if err := root.LinkSetDown(links[n]); err != nil {
		return "", fmt.Errorf("take down: %w", err)
	}
	if err := root.LinkSetName(links[n], name); err != nil {
		return "", fmt.Errorf("rename: %w", err)
	}
	if err := move(links[n]); err != nil {
		return "", fmt.Errorf("move to the container: %w", err)
	}
	return name, nil
}

func configure(h *netlink.Handle, nic string, in *protocol.Interface) error {
	link, err := h.LinkByName(nic)
	if err != nil {
		return fmt.Errorf("find: %w", err)
	}
	if err := setLink(h, link, in); err != nil {
		return err
	}
	nets, err := addAddresses(h, link, in.Addresses)
	if err != nil {
		return err
	}
	// The link comes up after its addresses are set, because routes on the link, including the
	// kernel's own, follow from these.
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	if err := addRoutes(h, link, in.Routes, nets); err != nil {
		return err
	}
	return addNeighbors(h, link, in.Neighbors)
}

// setLink sets the name, MAC address and MTU of a link where they differ. A link must be down
// for a change of name or address.
func setLink(h *netlink.Handle, link netlink.Link, in *protocol.Interface) error {
	now := link.Attrs()
	if in.Name != "" && in.Name != now.Name {
		if err := h.LinkSetName(link, in.Name); err != nil {
			return fmt.Errorf("rename: %w", err)
		}
	}
	if in.Mac != "" {
		mac, err := net.ParseMAC(in.Mac)
		if err != nil {
			return err
		}
		if !slices.Equal(mac, now.HardwareAddr) {
			if err := h.LinkSetHardwareAddr(link, mac); err != nil {
				return fmt.Errorf("set address %s: %w", mac, err)
			}
		}
	}
	if in.Mtu != 0 && int(in.Mtu) != now.MTU {
		if err := h.LinkSetMTU(link, int(in.Mtu)); err != nil {
			return fmt.Errorf("set mtu %d: %w", in.Mtu, err)
		}
	}
	err := h.LinkSetIP6AddrGenMode(link, addrGenNone)
	// A kernel without IPv6 makes no link-local address.
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("set address generation: %w", err)
	}
	return nil
}

// addAddresses adds the addresses, and returns the networks that they are in.
func addAddresses(h *netlink.Handle, link netlink.Link, addresses []string) ([]*net.IPNet, error) {
	var nets []*net.IPNet
	for _, a := range addresses {
		ip, ipNet, err := net.ParseCIDR(a)
		if err != nil {
			return nil, err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: ipNet.Mask}, Scope: scopeOf(ip)}
		if ip.To4() == nil {
			// The host's interface has the same address. Duplicate address detection would take
			// a second and might find the host.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("add address %s: %w", a, err)
		}
		nets = append(nets, ipNet)
	}
	return nets, nil
}

func scopeOf(ip net.IP) int {
	switch {
	case ip.IsLoopback():
		return unix.RT_SCOPE_HOST
	case ip.IsLinkLocalUnicast():
		return unix.RT_SCOPE_LINK
	}
	return unix.RT_SCOPE_UNIVERSE
}

func addNeighbors(h *netlink.Handle, link netlink.Link, neighbors []*protocol.Neighbor) error {
	for _, n := range neighbors {
		ip := net.ParseIP(n.Address)
		if ip == nil {
			return fmt.Errorf("neighbour address %q is not valid", n.Address)
		}
		mac, err := net.ParseMAC(n.Mac)
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", ip, err)
		}
		err = h.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: familyOf(ip), State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: mac,
		})
		if err != nil {
			return fmt.Errorf("add neighbour %s: %w", ip, err)
		}
	}
	return nil
}

func familyOf(ip net.IP) int {
	if ip.To4() != nil {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
