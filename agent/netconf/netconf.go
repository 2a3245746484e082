// Package netconf gives a network namespace of the guest the interfaces the host
// found in the container's: names, addresses, routes and neighbours.
package netconf

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/agent/protocol"
)

// addrGenNone keeps the kernel from making a link-local address of its own
// (IN6_ADDR_GEN_MODE_NONE): the host's interface has one, or none, and the guest
// shall have the same.
const addrGenNone = 1

// Apply moves each interface's NIC into the network namespace at nsPath and
// configures it, and brings lo up. An empty nsPath means the caller's own
// namespace. It is not undone on error: the caller ends the guest.
func Apply(nsPath string, interfaces []*protocol.Interface) error {
	root, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer root.Close()
	target, move := root, func(netlink.Link) error { return nil }
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
	nics, err := prepare(root, move, interfaces)
	if err != nil {
		return err
	}
	for i, in := range interfaces {
		if err := configure(target, nics[i], in); err != nil {
			return fmt.Errorf("interface %s: %w", in.Name, err)
		}
	}
	return nil
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

// prepare finds every interface's NIC and moves all, each under a passing name:
// a NIC that is still called eth0 must not stand in the way of the one that
// shall be. It returns those passing names.
func prepare(root *netlink.Handle, move func(netlink.Link) error, interfaces []*protocol.Interface) ([]string, error) {
	links, err := root.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for i, in := range interfaces {
		mac, err := net.ParseMAC(in.NicMac)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", in.Name, err)
		}
		n := slices.IndexFunc(links, func(l netlink.Link) bool {
			return slices.Equal(l.Attrs().HardwareAddr, mac)
		})
		if n < 0 {
			return nil, fmt.Errorf("interface %s: no network card has address %s", in.Name, mac)
		}
		name := fmt.Sprintf("husk-nic%d", i)
		if err := root.LinkSetDown(links[n]); err != nil {
			return nil, fmt.Errorf("interface %s: take down: %w", in.Name, err)
		}
		if err := root.LinkSetName(links[n], name); err != nil {
			return nil, fmt.Errorf("interface %s: rename: %w", in.Name, err)
		}
		if err := move(links[n]); err != nil {
			return nil, fmt.Errorf("interface %s: move to the container: %w", in.Name, err)
		}
		names = append(names, name)
	}
	return names, nil
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
	// Addresses first: routes through the link, and the kernel's own, follow them.
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	if err := addRoutes(h, link, in.Routes, nets); err != nil {
		return err
	}
	return addNeighbors(h, link, in.Neighbors)
}

// setLink gives the link its name, address and MTU while it is down, which a
// change of name or address needs.
func setLink(h *netlink.Handle, link netlink.Link, in *protocol.Interface) error {
	if in.Name != "" {
		if err := h.LinkSetName(link, in.Name); err != nil {
			return fmt.Errorf("rename: %w", err)
		}
	}
	if in.Mac != "" {
		mac, err := net.ParseMAC(in.Mac)
		if err != nil {
			return err
		}
		if err := h.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("set address %s: %w", mac, err)
		}
	}
	if in.Mtu != 0 {
		if err := h.LinkSetMTU(link, int(in.Mtu)); err != nil {
			return fmt.Errorf("set mtu %d: %w", in.Mtu, err)
		}
	}
	err := h.LinkSetIP6AddrGenMode(link, addrGenNone)
	// Without IPv6 in the kernel there is nothing to keep it from.
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("set address generation: %w", err)
	}
	return nil
}

// addAddresses returns the networks the addresses are in.
func addAddresses(h *netlink.Handle, link netlink.Link, addresses []string) ([]*net.IPNet, error) {
	var nets []*net.IPNet
	for _, a := range addresses {
		ip, ipNet, err := net.ParseCIDR(a)
		if err != nil {
			return nil, err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: ipNet.Mask}, Scope: scopeOf(ip)}
		if ip.To4() == nil {
			// The host's interface has the address already: asking the network
			// whether somebody has it would take a second, or find the host.
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
		family := unix.AF_INET6
		if ip.To4() != nil {
			family = unix.AF_INET
		}
		err = h.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: mac,
		})
		if err != nil {
			return fmt.Errorf("add neighbour %s: %w", ip, err)
		}
	}
	return nil
}
