package netconf

import (
	"fmt"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// inNetNS moves the test to a new network namespace, which stands for the guest's, and returns
// the path of another, which stands for the container's.
func inNetNS(t *testing.T) (nsPath string, container *netlink.Handle) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	// The goroutine is not unlocked, so the thread in the changed namespace ends with it.
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	if container, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		t.Fatal(err)
	}
	root, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { container.Close(); _ = ns.Close(); _ = root.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", ns), container
}

func addNIC(t *testing.T, name, mac string) {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, hw
	peer := "peer-" + name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(peer)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil { // gives the interface a carrier
		t.Fatal(err)
	}
}

func addressesOf(t *testing.T, h *netlink.Handle, link netlink.Link) []string {
	t.Helper()
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("address %s is tentative", a.IPNet)
		}
		got = append(got, a.IPNet.String())
	}
	slices.Sort(got)
	return got
}

func routesOf(t *testing.T, h *netlink.Handle, link netlink.Link) []string {
	t.Helper()
	routes, err := h.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range routes {
		s := fmt.Sprintf("%s via %s src %s metric %d", r.Dst, r.Gw, r.Src, r.Priority)
		got = append(got, strings.ReplaceAll(s, "<nil>", "-"))
	}
	slices.Sort(got)
	return got
}

func TestApply(t *testing.T) {
	nsPath, h := inNetNS(t)
	// The names are exchanged: eth0 becomes eth1 and eth1 becomes eth0.
	addNIC(t, "eth0", "02:00:00:00:00:01")
	addNIC(t, "eth1", "02:00:00:00:00:02")
	err := new(Cards).Apply(nsPath, []*protocol.Interface{
		{
			NicMac: "02:00:00:00:00:01", Name: "eth1", Mac: "02:42:ac:11:00:02", Mtu: 1400,
			Addresses: []string{"10.1.0.2/24", "fd00::2/64", "fe80::42/64"},
			Routes: []*protocol.Route{
				// Default routes come first in this list; the agent has to find the right
				// order.
				{Gateway: "192.168.7.1", Family: unix.AF_INET},
				{Gateway: "fd00::1", Family: unix.AF_INET6, Priority: 1024},
				{Destination: "192.168.7.1/32", Family: unix.AF_INET, Scope: unix.RT_SCOPE_LINK},
				{Destination: "10.9.0.0/16", Gateway: "10.1.0.1", Source: "10.1.0.2", Family: unix.AF_INET, Priority: 7},
				{Destination: "10.8.0.0/16", Gateway: "172.31.0.1", Family: unix.AF_INET, Flags: unix.RTNH_F_ONLINK},
				// The kernel makes this route itself.
				{Destination: "10.1.0.0/24", Source: "10.1.0.2", Family: unix.AF_INET, Scope: unix.RT_SCOPE_LINK},
				{Destination: "fd00::/64", Family: unix.AF_INET6, Priority: 256},
				{Destination: "fe80::/64", Family: unix.AF_INET6, Priority: 256},
				{Destination: "ff00::/8", Family: unix.AF_INET6, Priority: 256},
			},
			Neighbors: []*protocol.Neighbor{
				{Address: "10.1.0.1", Mac: "02:00:00:00:0a:01"},
				{Address: "fd00::1", Mac: "02:00:00:00:0a:01"},
			},
		},
		{NicMac: "02:00:00:00:00:02", Name: "eth0"},
	})
	if err != nil {
		t.Fatal(err)
	}

	link, err := h.LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	attrs := link.Attrs()
	if attrs.HardwareAddr.String() != "02:42:ac:11:00:02" || attrs.MTU != 1400 || attrs.Flags&net.FlagUp == 0 {
		t.Errorf("eth1 is %s, mtu %d, %s", attrs.HardwareAddr, attrs.MTU, attrs.Flags)
	}
	if got, want := addressesOf(t, h, link), []string{"10.1.0.2/24", "fd00::2/64", "fe80::42/64"}; !slices.Equal(got, want) {
		t.Errorf("addresses %q, want %q", got, want)
	}
	wantRoutes := []string{
		"0.0.0.0/0 via 192.168.7.1 src - metric 0",
		"10.1.0.0/24 via - src 10.1.0.2 metric 0",
		"10.8.0.0/16 via 172.31.0.1 src - metric 0",
		"10.9.0.0/16 via 10.1.0.1 src 10.1.0.2 metric 7",
		"192.168.7.1/32 via - src - metric 0",
		"::/0 via fd00::1 src - metric 1024",
		"fd00::/64 via - src - metric 256",
		"fe80::/64 via - src - metric 256",
	}
	if got := routesOf(t, h, link); !slices.Equal(got, wantRoutes) {
		t.Errorf("routes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(wantRoutes, "\n"))
	}
	neighbors, err := h.NeighList(attrs.Index, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	permanent := 0
	for _, n := range neighbors {
		if n.State == netlink.NUD_PERMANENT && n.HardwareAddr.String() == "02:00:00:00:0a:01" {
			permanent++
		}
	}
	if permanent != 2 {
		t.Errorf("%d permanent neighbours, want 2: %v", permanent, neighbors)
	}

	other, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if got := addressesOf(t, h, other); len(got) != 0 {
		t.Errorf("eth0 has addresses nobody gave it: %q", got)
	}
	if lo, err := h.LinkByName("lo"); err != nil || lo.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("lo is not up: %v", err)
	}
}

func TestApplyWithoutInterfaces(t *testing.T) {
	nsPath, h := inNetNS(t)
	addNIC(t, "eth0", "02:00:00:00:00:01")
	if err := new(Cards).Apply(nsPath, nil); err != nil {
		t.Fatal(err)
	}
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Attrs().Name != "lo" || links[0].Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("links are %v, want lo alone, up", links)
	}
}

// TestApplyInPlace: a container without a network namespace of its own uses the guest's.
func TestApplyInPlace(t *testing.T) {
	inNetNS(t)
	addNIC(t, "eth0", "02:00:00:00:00:01")
	addNIC(t, "eth1", "02:00:00:00:00:02")
	err := new(Cards).Apply("", []*protocol.Interface{
		{NicMac: "02:00:00:00:00:01", Name: "eth1", Addresses: []string{"10.1.0.2/24"}},
		{NicMac: "02:00:00:00:00:02", Name: "eth0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("eth1")
	if err != nil || link.Attrs().HardwareAddr.String() != "02:00:00:00:00:01" {
		t.Errorf("eth1 is %v, %v", link, err)
	}
}

func TestApplyRefuses(t *testing.T) {
	nsPath, _ := inNetNS(t)
	addNIC(t, "eth0", "02:00:00:00:00:01")
	for name, in := range map[string]*protocol.Interface{
		"no such card": {NicMac: "02:00:00:00:00:99", Name: "eth0"},
		"mac":          {NicMac: "zz", Name: "eth0"},
		"address":      {NicMac: "02:00:00:00:00:01", Name: "eth0", Addresses: []string{"10.0.0.1"}},
	} {
		if err := new(Cards).Apply(nsPath, []*protocol.Interface{in}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := new(Cards).Apply("/nonexistent", nil); err == nil {
		t.Error("namespace: accepted")
	}
}

// TestApplyAgain does what engines do to a running container: it adds a network, changes
// routes, and removes a network.
func TestApplyAgain(t *testing.T) {
	nsPath, h := inNetNS(t)
	addNIC(t, "eth0", "02:00:00:00:00:01")
	addNIC(t, "eth1", "02:00:00:00:00:02")
	first := &protocol.Interface{
		NicMac: "02:00:00:00:00:01", Name: "eth0", Mac: "02:42:ac:11:00:02", Addresses: []string{"10.1.0.2/24"},
		Routes: []*protocol.Route{{Gateway: "10.1.0.1", Family: unix.AF_INET}},
	}
	second := &protocol.Interface{
		NicMac: "02:00:00:00:00:02", Name: "eth1", Mac: "02:42:ac:12:00:02", Addresses: []string{"10.2.0.2/24"},
	}
	changed := &protocol.Interface{
		NicMac: first.NicMac, Name: "eth0", Mac: first.Mac, Addresses: []string{"10.1.0.3/24"},
		Routes: []*protocol.Route{{Destination: "10.9.0.0/16", Gateway: "10.1.0.1", Family: unix.AF_INET}},
	}
	var cards Cards
	for _, step := range []struct {
		name       string
		interfaces []*protocol.Interface
		want       map[string]string // addresses by interface
	}{
		{"one", []*protocol.Interface{first}, map[string]string{"eth0": "10.1.0.2/24"}},
		{"one more", []*protocol.Interface{first, second}, map[string]string{"eth0": "10.1.0.2/24", "eth1": "10.2.0.2/24"}},
		{"a change", []*protocol.Interface{changed, second}, map[string]string{"eth0": "10.1.0.3/24", "eth1": "10.2.0.2/24"}},
		{"one less", []*protocol.Interface{second}, map[string]string{"eth1": "10.2.0.2/24"}},
		{"back again", []*protocol.Interface{first, second}, map[string]string{"eth0": "10.1.0.2/24", "eth1": "10.2.0.2/24"}},
		{"none", nil, map[string]string{}},
	} {
		if err := cards.Apply(nsPath, step.interfaces); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		links, err := h.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, l := range links {
			if l.Attrs().Name != "lo" {
				got[l.Attrs().Name] = strings.Join(addressesOf(t, h, l), " ")
			}
		}
		if !maps.Equal(got, step.want) {
			t.Errorf("%s: interfaces %v, want %v", step.name, got, step.want)
		}
		if step.name != "a change" {
			continue
		}
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"10.1.0.0/24 via - src 10.1.0.3 metric 0", "10.9.0.0/16 via 10.1.0.1 src - metric 0"}
		if got := routesOf(t, h, eth0); !slices.Equal(got, want) {
			t.Errorf("%s: routes %q, want %q", step.name, got, want)
		}
	}
	for _, mac := range []string{"02:00:00:00:00:01", "02:00:00:00:00:02"} {
		links, err := netlink.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().HardwareAddr.String() == mac }) {
			t.Errorf("card %s did not come back", mac)
		}
	}
}

// TestApplyKeepsUp: when an IPv6 address is added later, the interface does not go down, which
// would remove a route that the container has made.
func TestApplyKeepsUp(t *testing.T) {
	nsPath, h := inNetNS(t)
	addNIC(t, "eth0", "02:00:00:00:00:01")
	given := func(addresses ...string) []*protocol.Interface {
		return []*protocol.Interface{{
			NicMac: "02:00:00:00:00:01", Name: "eth0", Mac: "02:42:ac:11:00:02", Addresses: addresses,
			Routes: []*protocol.Route{{Gateway: "10.1.0.1", Family: unix.AF_INET}},
		}}
	}
	var cards Cards
	if err := cards.Apply(nsPath, given("10.1.0.2/24")); err != nil {
		t.Fatal(err)
	}
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	_, dst, err := net.ParseCIDR("10.7.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: dst, Gw: net.IPv4(10, 1, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	for _, addresses := range [][]string{{"10.1.0.2/24", "fe80::1/64"}, {"10.1.0.2/24"}} {
		if err := cards.Apply(nsPath, given(addresses...)); err != nil {
			t.Fatal(err)
		}
		if got := addressesOf(t, h, eth0); !slices.Equal(got, addresses) {
			t.Errorf("addresses %q, want %q", got, addresses)
		}
		want := "10.7.0.0/16 via 10.1.0.1 src - metric 0"
		if got := routesOf(t, h, eth0); !slices.Contains(got, want) {
			t.Errorf("with addresses %q: routes %q, want %q among them", addresses, got, want)
		}
	}
}
