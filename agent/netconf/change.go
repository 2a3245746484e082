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

// vacate takes from a card what in does not give it, and returns its name until it
// is configured. It stays up unless what it is called or its address changes:
// without a route for even a moment, whatever the container asks of the network
// fails at once. An interface changes by itself, as its IPv6 addresses come some
// time after it.
func vacate(h *netlink.Handle, old *card, in *protocol.Interface, passing string) (string, error) {
	link, err := h.LinkByIndex(old.index)
	if err != nil {
		return "", fmt.Errorf("find: %w", err)
	}
	// The container may have renamed it.
	if link.Attrs().Name != in.Name || old.given.Mac != in.Mac {
		return passing, empty(h, link, passing)
	}
	// Routes first: some are gone with the address, others keep it from going.
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

// empty takes a link down, and with that its routes, and its addresses from it.
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
	// Gone already: by the container, or with another route or address.
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

// deleteAddress passes over one that is gone already.
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
