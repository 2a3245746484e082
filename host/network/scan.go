package network

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// Interface describes one network interface of the namespace, and so the guest's card that
// stands for it.
type Interface struct {
	Index     int
	Name      string
	Kind      string // as netlink names it: "veth", "macvlan", "tuntap", "device"...
	MAC       string
	MTU       int // in bytes
	Up        bool
	Addresses []string // IPv4 and IPv6, in CIDR notation
	// Routes are the routes of the main table through this interface. Those without a gateway
	// come first, so that adding them in this order works.
	Routes    []Route
	Neighbors []Neighbor // permanent entries only
}

// Route is one unicast route.
type Route struct {
	Destination string // in CIDR notation; empty for the default route
	Gateway     string // empty for a destination on the link
	Source      string // preferred source address; may be empty
	Scope       int    // RT_SCOPE_*
	Priority    int    // metric
	Family      int    // AF_INET or AF_INET6
	OnLink      bool   // the gateway is on the link although no route says so
}

// Neighbor is one permanent ARP or NDP entry.
type Neighbor struct {
	Address string
	MAC     string
}

// Skipped is an interface that the guest does not get.
type Skipped struct {
	Name   string
	Reason string
	// Expected is true for interfaces that every namespace has or that husk has made. For
	// others a warning is useful, because the container will miss them.
	Expected bool
	// Tap is true for a tap of husk's, of this container or another one.
	Tap bool
}

// ToProto returns the interface as the agent gets it. nicMAC is the MAC address that the
// guest's card has at boot.
func (i *Interface) ToProto(nicMAC string) *protocol.Interface {
	p := &protocol.Interface{
		NicMac:    nicMAC,
		Name:      i.Name,
		Mac:       i.MAC,
		Mtu:       uint32(i.MTU),
		Addresses: i.Addresses,
	}
	for _, r := range i.Routes {
		pr := &protocol.Route{
			Destination: r.Destination,
			Gateway:     r.Gateway,
			Source:      r.Source,
			Scope:       uint32(r.Scope),
			Priority:    uint32(r.Priority),
			Family:      uint32(r.Family),
		}
		if r.OnLink {
			pr.Flags = unix.RTNH_F_ONLINK
		}
		p.Routes = append(p.Routes, pr)
	}
	for _, n := range i.Neighbors {
		p.Neighbors = append(p.Neighbors, &protocol.Neighbor{Address: n.Address, Mac: n.MAC})
	}
	return p
}

// Scan returns the interfaces that a guest can have, by ascending index, and those that it
// cannot, with the reason. An interface that is down or has no addresses is returned too,
// because the container may configure it itself.
func Scan() ([]Interface, []Skipped, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list interfaces: %w", err)
	}
	slices.SortFunc(links, func(a, b netlink.Link) int {
		return cmp.Compare(a.Attrs().Index, b.Attrs().Index)
	})
	routes, err := listRoutes()
	if err != nil {
		return nil, nil, err
	}
	var (
		found   []Interface
		skipped []Skipped
	)
	for _, link := range links {
		if reason, expected := skipReason(link); reason != "" {
			skipped = append(skipped, Skipped{link.Attrs().Name, reason, expected, isOurTap(link)})
			continue
		}
		iface, err := scanInterface(link, routes)
		if err != nil {
			return nil, nil, err
		}
		found = append(found, iface)
	}
	return found, skipped, nil
}

// skipReason returns why an interface cannot be a guest's card; "" if it can.
func skipReason(link netlink.Link) (reason string, expected bool) {
	a := link.Attrs()
	up := a.Flags&net.FlagUp != 0
	switch {
	case a.Flags&net.FlagLoopback != 0:
		return "loopback: the guest has its own", true
	case isOurTap(link):
		return "a tap of husk", true
	case tapOfHop(link) != "":
		return "a hop of husk's frames", true
	case !up && (a.EncapType != "ether" || link.Type() == "gretap" || link.Type() == "erspan"):
		// tunl0, sit0, ip6tnl0, gre0, gretap0, erspan0 and the like: when a tunnel's module is
		// loaded, the kernel makes one of these in every namespace.
		return "unused " + link.Type() + " tunnel", true
	case link.Type() == "ifb":
		return "ifb: a traffic control helper of the host", true
	case a.EncapType != "ether":
		// A tap carries Ethernet frames, and tc's mirred action adds no header.
		return "not an Ethernet interface (" + a.EncapType + ")", false
	case a.RawFlags&unix.IFF_NOARP != 0:
		// With ipvlan in l3 mode nobody would answer the guest's ARP requests.
		return "does no address resolution (NOARP)", false
	case link.Type() == "bridge":
		return "a bridge", false
	case a.MasterIndex != 0:
		return "a port of another interface", false
	case a.ParentIndex != 0 && a.NetNsID == -1:
		// Frames would never come out of a VLAN or macvlan whose lower interface is redirected,
		// or of a veth whose two ends are both here.
		return "sits on another interface of the same namespace", false
	}
	return "", false
}

func scanInterface(link netlink.Link, routes []netlink.Route) (Interface, error) {
	a := link.Attrs()
	iface := Interface{
		Index: a.Index,
		Name:  a.Name,
		Kind:  link.Type(),
		MAC:   a.HardwareAddr.String(),
		MTU:   a.MTU,
		Up:    a.Flags&net.FlagUp != 0,
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return Interface{}, fmt.Errorf("list addresses of %s: %w", a.Name, err)
	}
	for _, addr := range addrs {
		// The kernel makes temporary addresses for privacy, and the guest's kernel makes its
		// own. A duplicate address belongs to somebody else. (IPv4 uses the same flag bits for
		// other things, such as 0x01 for SECONDARY.)
		v6 := addr.IP.To4() == nil
		if v6 && addr.Flags&(unix.IFA_F_TEMPORARY|unix.IFA_F_DADFAILED) != 0 {
			continue
		}
		iface.Addresses = append(iface.Addresses, addr.IPNet.String())
	}
	for i := range routes {
		iface.Routes = append(iface.Routes, routesVia(&routes[i], a.Index)...)
	}
	slices.SortStableFunc(iface.Routes, func(a, b Route) int {
		return cmp.Compare(min(len(a.Gateway), 1), min(len(b.Gateway), 1))
	})
	if iface.Neighbors, err = scanNeighbors(a); err != nil {
		return Interface{}, err
	}
	return iface, nil
}

// listRoutes returns the unicast routes of the main table.
func listRoutes() ([]netlink.Route, error) {
	var routes []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			multicast := r.Dst != nil && r.Dst.IP.IsMulticast()
			if r.Type == unix.RTN_UNICAST && !multicast {
				r.Family = family
				routes = append(routes, r)
			}
		}
	}
	return routes, nil
}

// routesVia returns the routes through this interface: one, or one for each next hop of a
// multipath route that uses it. The guest uses the first of two routes with equal destination
// and metric, so a multipath route is no longer spread but still reaches its destination.
func routesVia(r *netlink.Route, index int) []Route {
	out := Route{Scope: int(r.Scope), Priority: r.Priority, Family: r.Family}
	if r.Dst != nil {
		if ones, _ := r.Dst.Mask.Size(); ones > 0 {
			out.Destination = r.Dst.String()
		}
	}
	if r.Src != nil {
		out.Source = r.Src.String()
	}
	hop := func(gw net.IP, via netlink.Destination, flags int) Route {
		h := out
		if gw != nil {
			h.Gateway = gw.String()
		} else if v, ok := via.(*netlink.Via); ok {
			h.Gateway = v.Addr.String() // an IPv4 route through an IPv6 gateway
		}
		h.OnLink = flags&unix.RTNH_F_ONLINK != 0
		return h
	}
	if len(r.MultiPath) == 0 {
		if r.LinkIndex != index {
			return nil
		}
		return []Route{hop(r.Gw, r.Via, r.Flags)}
	}
	var hops []Route
	for _, nh := range r.MultiPath {
		if nh.LinkIndex == index {
			hops = append(hops, hop(nh.Gw, nh.Via, nh.Flags))
		}
	}
	return hops
}

func scanNeighbors(a *netlink.LinkAttrs) ([]Neighbor, error) {
	var neighbors []Neighbor
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(a.Index, family) })
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list neighbours of %s: %w", a.Name, err)
		}
		for _, n := range list {
			if n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) > 0 {
				neighbors = append(neighbors, Neighbor{n.IP.String(), n.HardwareAddr.String()})
			}
		}
	}
	return neighbors, nil
}

// dump repeats a netlink dump that a change has interrupted. Engines add routes while a
// container starts, and from half a list the default route may be missing.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 10
	var err error
	for range tries {
		var out []T
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, err
}
