package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestOpenTaps(t *testing.T) {
	ns := newNamespace(t)
	taps := openTaps(ns, 3)
	names, macs := map[string]bool{}, map[string]bool{}
	for _, tap := range taps {
		names[tap.Name], macs[tap.MAC] = true, true
		mac, err := net.ParseMAC(tap.MAC)
		if err != nil || mac[0] != 0x02 {
			t.Errorf("MAC %q is not locally administered: %v", tap.MAC, err)
		}
		ns.do(func() error {
			link, err := netlink.LinkByIndex(tap.Index)
			if err == nil && (link.Attrs().Name != tap.Name || !isOurTap(link)) {
				t.Errorf("tap %+v is interface %+v", tap, link)
			}
			return err
		})
	}
	if len(names) != 3 || len(macs) != 3 {
		t.Errorf("taps are not distinct: %v %v", names, macs)
	}
	// A duplicate, such as the vmm's, keeps a tap alive.
	fd, err := unix.FcntlInt(taps[0].File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	CloseTaps(taps)
	if got := ns.traces(); got != "tap "+taps[0].Name {
		t.Errorf("with one descriptor open: %q", got)
	}
	unix.Close(fd)
	if got := ns.traces(); got != "" {
		t.Errorf("with all descriptors closed: %q", got)
	}
}

func TestOpenTapsRefuses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("taps need root")
	}
	if _, err := OpenTaps(1); !errors.Is(err, ErrHostNamespace) {
		t.Errorf("in the host's network namespace: %v", err)
	}
	for _, n := range []int{-1, 1000} {
		if _, err := OpenTaps(n); err == nil {
			t.Errorf("%d taps opened", n)
		}
	}
	if taps, err := OpenTaps(0); err != nil || taps != nil {
		t.Errorf("no taps: %v, %v", taps, err)
	}
}

// wire sets up the host's end of a veth with everything that an engine might add.
func wire(name string) error {
	if err := configure(name, "10.8.0.2/24", "10.8.5.2/32", "fd00:8::2/64"); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	_, net4, _ := net.ParseCIDR("192.0.2.0/24")
	_, net6, _ := net.ParseCIDR("2001:db8:1::/48")
	_, multi, _ := net.ParseCIDR("203.0.113.0/24")
	_, black, _ := net.ParseCIDR("198.51.100.0/24")
	_, other, _ := net.ParseCIDR("198.18.0.0/15")
	for _, r := range []netlink.Route{
		{LinkIndex: index, Gw: net.ParseIP("10.8.0.1"), Src: net.ParseIP("10.8.0.2"), Priority: 7},
		{LinkIndex: index, Dst: net4, Scope: netlink.SCOPE_LINK},
		{LinkIndex: index, Dst: net6, Gw: net.ParseIP("fd00:8::1")},
		{LinkIndex: index, Gw: net.ParseIP("fe80::1")},
		{
			LinkIndex: index, Dst: &net.IPNet{IP: net.IPv4(172, 31, 0, 0), Mask: net.CIDRMask(16, 32)},
			Gw: net.ParseIP("169.254.1.1"), Flags: unix.RTNH_F_ONLINK,
		},
		{Dst: multi, MultiPath: []*netlink.NexthopInfo{
			{LinkIndex: index, Gw: net.ParseIP("10.8.0.3")},
			{LinkIndex: index, Gw: net.ParseIP("10.8.0.4")},
		}},
		{Dst: black, Type: unix.RTN_BLACKHOLE},
		{LinkIndex: index, Dst: other, Table: 100, Scope: netlink.SCOPE_LINK},
	} {
		if err := netlink.RouteAdd(&r); err != nil {
			return fmt.Errorf("add route %v: %w", r, err)
		}
	}
	mac, _ := net.ParseMAC("02:11:22:33:44:55")
	for _, ip := range []string{"10.8.0.1", "fd00:8::1"} {
		n := &netlink.Neigh{LinkIndex: index, IP: net.ParseIP(ip), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
		if err := netlink.NeighAdd(n); err != nil {
			return fmt.Errorf("add neighbour %s: %w", ip, err)
		}
	}
	return netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: index, IP: net.ParseIP("10.8.0.9"), HardwareAddr: mac, State: netlink.NUD_REACHABLE,
	})
}

func TestScan(t *testing.T) {
	ns, outside := newNamespace(t), newNamespace(t)
	ns.veth("eth0", 1380, outside)
	outside.do(func() error { return configure("eth0x") })
	ns.do(func() error { return wire("eth0") })
	openTaps(ns, 1)
	iface := scanOne(ns)
	if iface.Name != "eth0" || iface.Kind != "veth" || iface.MTU != 1380 || !iface.Up {
		t.Errorf("scanned %+v", iface)
	}
	for _, a := range []string{"10.8.0.2/24", "10.8.5.2/32", "fd00:8::2/64"} {
		if !slices.Contains(iface.Addresses, a) {
			t.Errorf("address %s is not in %v", a, iface.Addresses)
		}
	}
	find := func(dst, gw string) *Route {
		for i := range iface.Routes {
			if r := &iface.Routes[i]; r.Destination == dst && r.Gateway == gw {
				return r
			}
		}
		t.Errorf("no route to %q via %q in %+v", dst, gw, iface.Routes)
		return &Route{}
	}
	if r := find("", "10.8.0.1"); r.Source != "10.8.0.2" || r.Priority != 7 || r.Family != unix.AF_INET {
		t.Errorf("default route %+v", r)
	}
	if r := find("192.0.2.0/24", ""); r.Scope != unix.RT_SCOPE_LINK {
		t.Errorf("link route %+v", r)
	}
	if r := find("172.31.0.0/16", "169.254.1.1"); !r.OnLink {
		t.Errorf("on-link route %+v", r)
	}
	if r := find("", "fe80::1"); r.Family != unix.AF_INET6 {
		t.Errorf("default v6 route %+v", r)
	}
	find("2001:db8:1::/48", "fd00:8::1")
	find("203.0.113.0/24", "10.8.0.3")
	find("203.0.113.0/24", "10.8.0.4")
	find("10.8.0.0/24", "") // the kernel's own route
	gatewaySeen := false
	for _, r := range iface.Routes {
		gatewaySeen = gatewaySeen || r.Gateway != ""
		if gatewaySeen && r.Gateway == "" {
			t.Errorf("route %+v comes after one with a gateway", r)
		}
		for _, not := range []string{"198.51.100.0/24", "198.18.0.0/15", "ff00::/8", "10.8.0.2/32"} {
			if r.Destination == not {
				t.Errorf("route %+v is not of the guest", r)
			}
		}
	}
	want := []Neighbor{{"10.8.0.1", "02:11:22:33:44:55"}, {"fd00:8::1", "02:11:22:33:44:55"}}
	if !slices.Equal(iface.Neighbors, want) {
		t.Errorf("neighbours %v, want %v", iface.Neighbors, want)
	}
	checkProto(t, &iface)
}

func checkProto(t *testing.T, iface *Interface) {
	t.Helper()
	p := iface.ToProto("02:00:00:00:00:07")
	if p.NicMac != "02:00:00:00:00:07" || p.Mac != iface.MAC || p.Name != "eth0" || p.Mtu != 1380 ||
		len(p.Addresses) != len(iface.Addresses) || len(p.Routes) != len(iface.Routes) || len(p.Neighbors) != 2 {
		t.Errorf("message %v of %+v", p, iface)
	}
	for i, r := range p.Routes {
		want := uint32(0)
		if iface.Routes[i].OnLink {
			want = unix.RTNH_F_ONLINK
		}
		if r.Flags != want || r.Destination != iface.Routes[i].Destination || r.Family == 0 {
			t.Errorf("route %v of %+v", r, iface.Routes[i])
		}
	}
}

func TestScanSkips(t *testing.T) {
	ns, outside := newNamespace(t), newNamespace(t)
	ns.veth("eth0", 1500, outside) // without addresses and down, but still the container's
	ns.veth("port", 1500, outside)
	openTaps(ns, 1)
	link := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	ns.do(func() error {
		bridge := &netlink.Bridge{LinkAttrs: link("br0")}
		inner := &netlink.Veth{LinkAttrs: link("inner0"), PeerName: "inner1"}
		ifb := &netlink.Ifb{LinkAttrs: link("ifb0")}
		for _, l := range []netlink.Link{bridge, inner, ifb} {
			if err := netlink.LinkAdd(l); err != nil {
				return fmt.Errorf("add %s: %w", l.Attrs().Name, err)
			}
		}
		port, err := netlink.LinkByName("port")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(port, bridge); err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		mv := &netlink.Macvlan{LinkAttrs: link("mv0"), Mode: netlink.MACVLAN_MODE_BRIDGE}
		mv.ParentIndex = eth0.Attrs().Index
		return netlink.LinkAdd(mv)
	})
	var skipped []Skipped
	ns.do(func() error {
		found, s, err := Scan()
		if len(found) != 1 || found[0].Name != "eth0" {
			t.Errorf("found %+v, want eth0 only", found)
		}
		skipped = s
		return err
	})
	want := map[string]struct {
		reason   string
		expected bool
	}{
		"lo":     {"loopback", true},
		"husk0":  {"tap of husk", true},
		"ifb0":   {"ifb", true},
		"br0":    {"bridge", false},
		"port":   {"port of another", false},
		"inner0": {"sits on", false},
		"inner1": {"sits on", false},
		"mv0":    {"sits on", false},
	}
	for _, s := range skipped {
		w, ok := want[s.Name]
		if !ok {
			// Tunnels that the kernel makes in every namespace.
			if !strings.Contains(s.Reason, "tunnel") || !s.Expected {
				t.Errorf("skipped %+v", s)
			}
			continue
		}
		if !strings.Contains(s.Reason, w.reason) || s.Expected != w.expected {
			t.Errorf("skipped %+v, want %q, expected %v", s, w.reason, w.expected)
		}
		delete(want, s.Name)
	}
	for name := range want {
		t.Errorf("%s was not skipped", name)
	}
}
