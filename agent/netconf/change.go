package netconf

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/huskvm/husk/protocol"
)

// vacate removes from a card everything that in does not have, and returns the name under which
// the card waits for its configuration. The card stays up unless its name or MAC address
// changes, because without a route even for a moment every connection attempt of the container
// fails. An interface may change without anybody's action: its IPv6 addresses come later.
func vacate(h *netlink.Handle, old *card, in *protocol.Interface, passing string) (string, error) {
	link, err := h.LinkByIndex(old.index)
	if err != nil {
		return "", fmt.Errorf("find: %w", err)
	}
	// The container may have renamed the card.
	if link.Attrs().Name != in.Name || old.given.Mac != in.Mac {
		return passing, empty(h, link, passing)
	}
	// Routes are removed first: some go with their address, and others prevent its removal.
	for _, r := range old.given.Routes {
		if err := removeRoute(h, old.index, r, in.Routes); err != nil {
			return "", err
		}
	}
	for _, a := range old.given.Addresses {
		if err := removeAddress(h, link, a, in.Addresses); err != nil {
			return "", err
		}
	}
	for _, n := range old.given.Neighbors {
		if err := removeNeighbor(h, old.index, n, in.Neighbors); err != nil {
			return "", err
		}
	}
	return in.Name, nil
}

// empty takes a link down, which removes its routes, and removes its addresses.
func empty(h *netlink.Handle, link netlink.Link, name string) error {
	if err := h.LinkSetDown(link); err != nil {
		return fmt.Errorf("take down: %w", err)
	}
	addresses, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		if err := deleteAddress(h, link, &a); err != nil {
			return err
		}
	}
	if err := h.LinkSetName(link, name); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	return nil
}

func removeRoute(h *netlink.Handle, index int, r *protocol.Route, keep []*protocol.Route) error {
	if slices.ContainsFunc(keep, func(k *protocol.Route) bool { return proto.Equal(k, r) }) {
		return nil
	}
	route, err := parseRoute(r, index)
	if err != nil {
		return err
	}
	// ESRCH: the container has removed the route, or it went with another route or address.
	if err := h.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %s: %w", nameOf(r), err)
	}
	return nil
}

func removeAddress(h *netlink.Handle, link netlink.Link, address string, keep []string) error {
	if slices.Contains(keep, address) {
		return nil
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	return deleteAddress(h, link, addr)
}

// deleteAddress removes an address. It is no error if the address is gone already.
func deleteAddress(h *netlink.Handle, link netlink.Link, a *netlink.Addr) error {
	if err := h.AddrDel(link, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove address %s: %w", a.IPNet, err)
	}
	return nil
}

func removeNeighbor(h *netlink.Handle, index int, n *protocol.Neighbor, keep []*protocol.Neighbor) error {
	if slices.ContainsFunc(keep, func(k *protocol.Neighbor) bool { return k.Address == n.Address }) {
		return nil
	}
	ip := net.ParseIP(n.Address)
	err := h.NeighDel(&netlink.Neigh{LinkIndex: index, Family: familyOf(ip), IP: ip})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove neighbour %s: %w", n.Address, err)
	}
	return nil
}
