package network

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// OtherFilters returns the names of other things in the calling thread's network namespace that
// decide about packets and that the guest does not get. dir is /proc/net.
//
// Filters of tc and XDP on the interfaces are not among them, because they stay effective.
func OtherFilters(dir *os.File) (found []string, err error) {
	hasXfrm, err := hasNetlink(dir, unix.NETLINK_XFRM)
	if err != nil {
		return nil, err
	}
	if hasXfrm {
		policies, err := dump(func() ([]netlink.XfrmPolicy, error) { return netlink.XfrmPolicyList(netlink.FAMILY_ALL) })
		if err != nil {
			return nil, fmt.Errorf("list IPsec policies: %w", err)
		}
		if len(policies) > 0 {
			found = append(found, fmt.Sprintf("%d IPsec policies (ip xfrm policy): its packets would leave as they are", len(policies)))
		}
	}
	const heads = 3 // lines before the first service
	services, err := readAt(dir, "ip_vs")
	if err != nil {
		return nil, err
	}
	if n := strings.Count(services, "\n"); n > heads {
		found = append(found, "services of IPVS (ipvsadm)")
	}
	routes, err := refusingRoutes()
	if err != nil {
		return nil, err
	}
	return append(found, routes...), nil
}

// hasNetlink says whether the kernel has a netlink protocol. It reads a file of dir, because
// asking by the protocol would load its module.
func hasNetlink(dir *os.File, protocol int) (bool, error) {
	sockets, err := readAt(dir, "netlink")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(sockets) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == strconv.Itoa(protocol) {
			return true, nil
		}
	}
	return false, nil
}

// refusingRoutes returns the names of routes and rules with which the namespace refuses to send
// to some destinations.
func refusingRoutes() (found []string, err error) {
	kinds := map[int]string{unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit"}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			// Some kernels make such a route for IPv6 themselves, without an interface.
			const last = 0xffffffff
			if kind := kinds[r.Type]; kind != "" && uint32(r.Priority) != last {
				found = append(found, fmt.Sprintf("route %s %v", kind, r.Dst))
			}
		}
		rules, err := dump(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
		if err != nil {
			return nil, fmt.Errorf("list routing rules: %w", err)
		}
		for _, r := range rules {
			if kind := kinds[int(r.Type)]; kind != "" {
				found = append(found, fmt.Sprintf("routing rule %d: %s", r.Priority, kind))
			}
		}
	}
	return found, nil
}
