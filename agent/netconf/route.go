package netconf

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// kernelMetric6 is the metric of IPv6 routes that the kernel makes itself.
const kernelMetric6 = 256

// addRoutes adds the routes in an order in which each one's gateway can be reached: routes on
// the link, then those through a gateway, then default routes.
func addRoutes(h *netlink.Handle, link netlink.Link, routes []*protocol.Route, connected []*net.IPNet) error {
	routes = slices.Clone(routes)
	slices.SortStableFunc(routes, func(a, b *protocol.Route) int { return rank(a) - rank(b) })
	for _, r := range routes {
		route, err := parseRoute(r, link.Attrs().Index)
		if err != nil {
			return err
		}
		if kernelMakes(route, connected) {
			continue
		}
		if err := h.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add route to %s through %q: %w", nameOf(r), r.Gateway, err)
		}
	}
	return nil
}

func nameOf(r *protocol.Route) string {
	if r.Destination == "" {
		return "default"
	}
	return r.Destination
}

func rank(r *protocol.Route) int {
	switch {
	case r.Gateway == "" && r.Destination != "":
		return 0
	case r.Gateway != "" && r.Flags&unix.RTNH_F_ONLINK == 0 && r.Destination != "":
		return 2
	case r.Destination == "":
		return 3
	}
	return 1
}

func parseRoute(r *protocol.Route, linkIndex int) (*netlink.Route, error) {
	route := &netlink.Route{
		LinkIndex: linkIndex,
		Scope:     netlink.Scope(r.Scope),
		Priority:  int(r.Priority),
		Family:    int(r.Family),
	}
	if r.Flags&unix.RTNH_F_ONLINK != 0 {
		route.Flags = unix.RTNH_F_ONLINK
	}
	if r.Gateway != "" {
		if route.Gw = net.ParseIP(r.Gateway); route.Gw == nil {
			return nil, fmt.Errorf("gateway %q is not valid", r.Gateway)
		}
	}
	if r.Source != "" {
		if route.Src = net.ParseIP(r.Source); route.Src == nil {
			return nil, fmt.Errorf("route source %q is not valid", r.Source)
		}
	}
	if r.Destination != "" {
		_, dst, err := net.ParseCIDR(r.Destination)
		if err != nil {
			return nil, err
		}
		route.Dst = dst
		return route, nil
	}
	route.Dst = &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if r.Family == unix.AF_INET6 {
		route.Dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return route, nil
}

// kernelMakes says whether the kernel adds this route itself when the link gets its addresses.
// Adding it with another metric would make a second route.
func kernelMakes(r *netlink.Route, connected []*net.IPNet) bool {
	if r.Gw != nil {
		return false
	}
	if r.Dst.IP.IsMulticast() && r.Dst.IP.To4() == nil {
		return true
	}
	if r.Priority != 0 && (r.Dst.IP.To4() != nil || r.Priority != kernelMetric6) {
		return false
	}
	return slices.ContainsFunc(connected, func(n *net.IPNet) bool {
		return n.IP.Equal(r.Dst.IP) && slices.Equal(n.Mask, r.Dst.Mask)
	})
}
