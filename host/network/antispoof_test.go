package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
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
		links, err = Join(Pair{iface, taps[0], AntiSpoofOf(&iface, []Interface{iface}, SpoofNothing)})
		return err
	})
	peer := outside.anyFrame("eth0x")
	restrict := func(s AntiSpoof) {
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
	moved := AntiSpoofOf(&Interface{MAC: ownMAC}, []Interface{{Addresses: []string{"10.9.0.3/24"}}}, SpoofNothing)
	restrict(moved)
	check("with another address", map[string]bool{"another's IP": true})
	restrict(AntiSpoof{Spoofing: SpoofAddresses, MAC: ownMAC})
	check("with CAP_NET_RAW", map[string]bool{"own": true, "another's IP": true, "VLAN": true, "two VLANs": true})
	restrict(AntiSpoof{Spoofing: SpoofAll})
	check("with CAP_NET_ADMIN", map[string]bool{"own": true, "another's IP": true, "VLAN": true, "two VLANs": true, "another's MAC": true})
	restrict(moved)
	host.do(links.Undo)
	if got := host.traces(); got != "tap "+taps[0].Name {
		t.Errorf("left behind: %s", got)
	}
}

// asChecksum returns a frame behind a virtio header. The header asks the host for a checksum
// over the bytes from start on, and to write it at the byte at. Two more bytes at the frame's end
// make this checksum equal to want.
func asChecksum(frame []byte, start, at int, want uint16) []byte {
	b := append(slices.Clone(frame), make([]byte, 2+len(frame)%2)...) // the last two correct the sum
	sum := uint32(0)
	for i := start; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	missing := (2*0xffff + uint32(^want) - sum%0xffff) % 0xffff
	binary.BigEndian.PutUint16(b[len(b)-2:], uint16(missing))
	header := make([]byte, vnetHdrLen)
	header[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(header[6:], uint16(start))
	binary.NativeEndian.PutUint16(header[8:], uint16(at-start))
	return append(header, b...)
}

// TestChecksumsForgeNothing: the host writes the checksum that the guest asks for before the
// anti-spoofing filter reads the frame, and writes nothing after the filter.
func TestChecksumsForgeNothing(t *testing.T) {
	for _, spoofing := range []Spoofing{SpoofNothing, SpoofAddresses} {
		t.Run("forge "+string(spoofing), func(t *testing.T) { checksumsForgeNothing(t, spoofing, false) })
	}
	t.Run("forge addresses, older kernel", func(t *testing.T) { checksumsForgeNothing(t, SpoofAddresses, true) })
}

func checksumsForgeNothing(t *testing.T, spoofing Spoofing, older bool) {
	host, outside := newNamespace(t), newNamespace(t)
	host.veth("eth0", 1500, outside)
	host.do(func() error { return configure("eth0", "10.9.0.2/24") })
	outside.do(func() error { return configure("eth0x") })
	tap := openTaps(host, 1)[0]
	iface := scanOne(host)
	iface.MAC = ownMAC
	tap.sumsHeader = tap.sumsHeader || older
	// The driver of eth0 then computes no checksum, so the kernel computes it before it sends.
	host.do(func() error { return withoutOffloads("eth0", "") })
	joinFrom(host, iface, tap, AntiSpoofOf(&iface, []Interface{iface}, spoofing))
	peer := outside.anyFrame("eth0x")

	own := ip4("10.9.0.2", unix.IPPROTO_UDP, 5, 0, be16(4000, 53, 80, 0), make([]byte, 72))
	mark := append(make([]byte, vnetHdrLen), arpFrame(1, ownMAC, "0.0.0.0")...)
	addresses := spoofing == SpoofAddresses
	const start = 20
	for _, c := range []struct {
		name      string
		frame     []byte
		start, at int
		want      uint16
		pass      bool
	}{
		{"its own sum", own, start, offNetwork + 26, 0x1234, true},
		{"sender of a packet", own, start, offIPv4Source + 2, 0x0063, addresses},
		{"sender of an ARP answer", arpFrame(2, ownMAC, "10.9.0.2"), start, offARPSenderIP + 2, 0x0001, addresses},
		{"MAC in an ARP answer", arpFrame(2, ownMAC, "10.9.0.2"), start, offARPSenderMAC + 4, 0x0063, addresses},
		{"MAC", own, 0, offSourceMAC + 4, 0x0063, false},
		{"protocol", own, start, offIPv4Protocol - 1, 64<<8 | 89 /* OSPF */, addresses},
	} {
		for _, frame := range [][]byte{asChecksum(c.frame, c.start, c.at, c.want), mark} {
			// Newer kernels refuse to sum the frame's own header.
			if _, err := tap.File.Write(frame); err != nil && (c.start > 0 || !errors.Is(err, unix.EINVAL)) {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		arrived := false
		for {
			got := peer.recv(10 * time.Second)
			if got == nil {
				t.Fatalf("%s: the mark has not arrived", c.name)
			}
			if bytes.Equal(got, mark[vnetHdrLen:]) {
				break
			}
			if len(got) > c.at+2 && got[offType] == 0x08 && binary.BigEndian.Uint16(got[c.at:]) == c.want {
				arrived = true
			}
		}
		if arrived != c.pass {
			t.Errorf("%s, written as a checksum: arrives: %v, want %v", c.name, arrived, c.pass)
		}
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
