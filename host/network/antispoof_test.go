package network

import (
	"bytes"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// send writes a frame to the tap, as the vmm does, and says whether it arrives at the peer of
// the interface. After it send writes a mark, so that a frame that was dropped is recognized.
func send(t *testing.T, tap *Tap, peer *packetConn, frame []byte) bool {
	t.Helper()
	mark := ethernet(ownMAC, unix.ETH_P_ARP, arpFrame(1, ownMAC, "0.0.0.0")[14:])
	for _, f := range [][]byte{frame, mark} {
		if _, err := tap.File.Write(append(make([]byte, vnetHdrLen), f...)); err != nil {
			t.Fatal(err)
		}
	}
	arrived := false
	for {
		got := peer.recv(5 * time.Second)
		switch {
		case got == nil:
			t.Fatal("the mark has not arrived")
		case bytes.Equal(got, mark):
			return arrived
		// The kernel removes an outer VLAN tag from a frame.
		case len(got) > 14 && len(frame) > 18 && bytes.HasSuffix(frame, got[14:]):
			arrived = true
		}
	}
}

func TestForgedFramesAreDropped(t *testing.T) {
	host, outside := newNamespace(t), newNamespace(t)
	host.veth("eth0", 1500, outside)
	host.do(func() error { return configure("eth0", "10.9.0.2/24") })
	outside.do(func() error { return configure("eth0x") })
	taps := openTaps(host, 1)
	iface := scanOne(host)
	iface.MAC = ownMAC
	var links *Links
	host.do(func() (err error) {
		links, err = Join(Pair{iface, taps[0], SourcesOf(&iface, []Interface{iface}, ForgeNothing)})
		return err
	})
	peer := outside.anyFrame("eth0x")
	restrict := func(s Sources) {
		t.Helper()
		host.do(func() error { return links.Restrict(taps[0], s) })
	}
	tcp := make([]byte, 40)
	own, other := ip4("10.9.0.2", unix.IPPROTO_TCP, 5, 0, tcp), ip4("10.9.0.3", unix.IPPROTO_TCP, 5, 0, tcp)
	tagged := ethernet(ownMAC, unix.ETH_P_8021Q, be16(5, unix.ETH_P_IP), own[14:])
	twice := ethernet(ownMAC, unix.ETH_P_8021AD, be16(5, unix.ETH_P_8021Q, 6, unix.ETH_P_IP), own[14:])
	forged := ethernet(otherMAC, unix.ETH_P_IP, own[14:])
	check := func(when string, want map[string]bool) {
		t.Helper()
		for name, frame := range map[string][]byte{"own": own, "another's IP": other, "VLAN": tagged, "two VLANs": twice, "another's MAC": forged} {
			if got := send(t, taps[0], peer, frame); got != want[name] {
				t.Errorf("%s: frame %q arrives: %v, want %v", when, name, got, want[name])
			}
		}
	}
	check("at first", map[string]bool{"own": true})
	moved := SourcesOf(&Interface{MAC: ownMAC}, []Interface{{Addresses: []string{"10.9.0.3/24"}}}, ForgeNothing)
	restrict(moved)
	check("with another address", map[string]bool{"another's IP": true})
	restrict(Sources{Forging: ForgeAddresses, MAC: ownMAC})
	check("with CAP_NET_RAW", map[string]bool{"own": true, "another's IP": true, "VLAN": true, "two VLANs": true})
	restrict(Sources{Forging: ForgeAll})
	check("with CAP_NET_ADMIN", map[string]bool{"own": true, "another's IP": true, "VLAN": true, "two VLANs": true, "another's MAC": true})
	restrict(moved)
	host.do(links.Undo)
	if got := host.traces(); got != "tap "+taps[0].Name {
		t.Errorf("left behind: %s", got)
	}
}

// TestFiltersOfOthersHold: filters that others have put on the interface, before or after, run
// before the redirection.
func TestFiltersOfOthersHold(t *testing.T) {
	for _, late := range []bool{false, true} {
		host, outside := newNamespace(t), newNamespace(t)
		host.veth("eth0", 1500, outside)
		host.do(func() error { return configure("eth0") })
		outside.do(func() error { return configure("eth0x") })
		tap := openTaps(host, 1)[0]
		iface := scanOne(host)
		if late {
			join(host, iface, tap)
		}
		elsewhere := openTaps(host, 1)[0]
		host.do(func() error {
			link, err := netlink.LinkByIndex(iface.Index)
			if err != nil {
				return err
			}
			sink, err := netlink.LinkByIndex(elsewhere.Index)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(sink); err != nil {
				return err
			}
			if _, err := ensureIngress(link); err != nil {
				return err
			}
			// The priority that tc chooses by default.
			return addFilter(link, elsewhere.Index, 0xc000)
		})
		if !late {
			join(host, iface, tap)
		}
		peer := outside.packetConn("eth0x")
		frame := testFrame("for the other")
		if _, err := peer.f.Write(frame); err != nil {
			t.Fatal(err)
		}
		isIt := func(b []byte) bool { return bytes.HasSuffix(b, frame) }
		if got := readFrame(t, elsewhere.File, 5*time.Second, isIt); got == nil {
			t.Errorf("late %v: the other filter has not seen the frame", late)
		}
		if got := readFrame(t, tap.File, 100*time.Millisecond, isIt); got != nil {
			t.Errorf("late %v: the redirection came before the other filter", late)
		}
	}
}
