package network

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// vnetHdrLen is the default size of struct virtio_net_hdr, in bytes, which a tap with
// IFF_VNET_HDR puts before each frame.
const vnetHdrLen = 10

var noAntiSpoof = AntiSpoof{Spoofing: SpoofAll}

// eachWay runs a test with each kind of filter, because filtered frames pass other interfaces
// than unfiltered ones.
func eachWay(t *testing.T, test func(*testing.T, AntiSpoof)) {
	for _, spoofing := range []Spoofing{SpoofAll, SpoofAddresses, SpoofNothing} {
		t.Run("forge "+string(spoofing), func(t *testing.T) { test(t, ownAntiSpoof(spoofing)) })
	}
}

func openTaps(ns *namespace, n int) []*Tap {
	ns.t.Helper()
	var taps []*Tap
	ns.do(func() (err error) {
		taps, err = OpenTaps(n)
		return err
	})
	ns.t.Cleanup(func() { CloseTaps(taps) })
	return taps
}

func scanOne(ns *namespace) Interface {
	ns.t.Helper()
	var found []Interface
	ns.do(func() (err error) {
		found, _, err = Scan()
		return err
	})
	if len(found) != 1 {
		ns.t.Fatalf("scan found %d interfaces, want 1: %+v", len(found), found)
	}
	return found[0]
}

func join(ns *namespace, iface Interface, tap *Tap) *Links {
	ns.t.Helper()
	return joinFrom(ns, iface, tap, noAntiSpoof)
}

func joinFrom(ns *namespace, iface Interface, tap *Tap, s AntiSpoof) *Links {
	ns.t.Helper()
	var links *Links
	ns.do(func() (err error) {
		links, err = Join(Pair{iface, tap, s})
		return err
	})
	return links
}

func TestJoinRedirectsFramesBothWays(t *testing.T) {
	host, outside := newNamespace(t), newNamespace(t)
	host.veth("eth0", 1500, outside)
	host.do(func() error { return configure("eth0") })
	outside.do(func() error { return configure("eth0x") })
	tap := openTaps(host, 1)[0]
	join(host, scanOne(host), tap)
	peer, stack := outside.packetConn("eth0x"), host.packetConn("eth0")

	// The second frame is shorter than any key that a filter could compare.
	for _, payload := range []string{"to the guest", ""} {
		want := testFrame(payload)
		if _, err := peer.f.Write(want); err != nil {
			t.Fatal(err)
		}
		got := readFrame(t, tap.File, 5*time.Second, func(b []byte) bool {
			return len(b) >= vnetHdrLen+14 && b[vnetHdrLen+12] == testEthertype>>8
		})
		if got == nil || !bytes.Equal(got[vnetHdrLen:], want) {
			t.Errorf("frame %q to the guest arrived as %q", want, got)
		}
	}
	want := testFrame("from the guest")
	if _, err := tap.File.Write(append(make([]byte, vnetHdrLen), want...)); err != nil {
		t.Fatal(err)
	}
	if got := peer.recv(5 * time.Second); !bytes.Equal(got, want) {
		t.Errorf("frame %q from the guest arrived as %q", want, got)
	}
	// An AF_PACKET socket receives frames before tc sees them, so the socket on the host may
	// receive the two frames that came in. It must not receive a frame of the guest as
	// incoming.
	for range 3 {
		if got := stack.recv(50 * time.Millisecond); bytes.Equal(got, want) {
			t.Error("the guest's own frame came in again")
		}
	}
}

func TestJoinKeepsTheHostSilent(t *testing.T) {
	host, outside := newNamespace(t), newNamespace(t)
	host.veth("eth0", 1400, outside)
	host.do(func() error { return configure("eth0", "10.9.0.2/24", "fd00:9::2/64") })
	outside.do(func() error { return configure("eth0x", "10.9.0.1/24", "fd00:9::1/64") })
	tap := openTaps(host, 1)[0]
	iface := scanOne(host)
	join(host, iface, tap)

	host.do(func() error {
		link, err := netlink.LinkByIndex(tap.Index)
		if err != nil {
			return err
		}
		if got := link.Attrs().MTU; got != 1400 {
			t.Errorf("tap has MTU %d, want the interface's 1400", got)
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		if len(addrs) != 0 {
			t.Errorf("tap has addresses %v: the host would talk to the guest with them", addrs)
		}
		return nil
	})
	// There may be more addresses: the kernel adds a link-local one when the link has a
	// carrier.
	after := scanOne(host).Addresses
	for _, addr := range iface.Addresses {
		if !slices.Contains(after, addr) {
			t.Errorf("address %s is gone, left %v: engines read them back", addr, after)
		}
	}
	// An ARP request for the host's address reaches the guest, and the host, which has the same
	// address, does not answer.
	arps := func(b []byte) bool {
		return len(b) >= vnetHdrLen+42 && b[vnetHdrLen+12] == 0x08 && b[vnetHdrLen+13] == 0x06
	}
	outside.do(func() error {
		link, err := netlink.LinkByName("eth0x")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 9, 0, 2}}); err != nil {
			return err
		}
		if readFrame(t, tap.File, 5*time.Second, arps) == nil {
			t.Error("the guest did not hear the ARP request")
		}
		neighbors, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
		for _, n := range neighbors {
			if len(n.HardwareAddr) > 0 {
				t.Errorf("the host answered ARP: %v", n)
			}
		}
		return err
	})
}

func TestUndoLeavesNothing(t *testing.T) { eachWay(t, undoLeavesNothing) }

func undoLeavesNothing(t *testing.T, antiSpoof AntiSpoof) {
	host, outside := newNamespace(t), newNamespace(t)
	host.veth("eth0", 1500, outside)
	taps := openTaps(host, 1)
	iface := scanOne(host)
	links := joinFrom(host, iface, taps[0], antiSpoof)
	if up := scanOne(host).Up; !up {
		t.Error("a joined interface stayed down")
	}
	ways := 2
	if links.joined[0].needsHop(antiSpoof) {
		ways++ // on the exit of the hop
	}
	if got, want := host.traces(), "filters"; strings.Count(got, want) != ways {
		t.Fatalf("after join: %s", got)
	}
	for range 2 {
		host.do(links.Undo)
		if got := host.traces(); got != "tap husk0" {
			t.Errorf("after undo: %s", got)
		}
		if up := scanOne(host).Up; up {
			t.Error("undo left the interface up, which was down before")
		}
	}
	// After Undo everything is as it was before Join.
	links = joinFrom(host, iface, taps[0], antiSpoof)
	CloseTaps(taps)
	host.do(links.Undo)
	if got := host.traces(); got != "" {
		t.Errorf("after the tap is gone: %s", got)
	}
}

func TestJoinUndoesItselfOnFailure(t *testing.T) { eachWay(t, joinUndoesItself) }

func joinUndoesItself(t *testing.T, antiSpoof AntiSpoof) {
	host, outside := newNamespace(t), newNamespace(t)
	host.veth("eth0", 1500, outside)
	host.veth("eth1", 1500, outside)
	taps := openTaps(host, 2)
	var found []Interface
	host.do(func() (err error) {
		found, _, err = Scan()
		return err
	})
	if len(found) != 2 {
		t.Fatalf("found %+v, want two interfaces", found)
	}
	before := host.traces()
	gone := Interface{Index: 4242, Name: "eth9"}
	notTap := &Tap{Name: "eth1", Index: found[1].Index}
	// Each call fails at its second pair, some before and some while it changes something.
	for name, pairs := range map[string][]Pair{
		"interface gone": {{found[0], taps[0], antiSpoof}, {gone, taps[1], antiSpoof}},
		"tap gone":       {{found[0], taps[0], antiSpoof}, {found[1], &Tap{Name: "husk9", Index: 4243}, antiSpoof}},
		"not a tap":      {{found[0], taps[0], antiSpoof}, {found[1], notTap, antiSpoof}},
		"same interface": {{found[0], taps[0], antiSpoof}, {found[0], taps[1], antiSpoof}},
		"same tap":       {{found[0], taps[0], antiSpoof}, {found[1], taps[0], antiSpoof}},
	} {
		host.do(func() error {
			if links, err := Join(pairs...); err == nil {
				t.Errorf("%s: joined: %+v", name, links)
			}
			return nil
		})
		if got := host.traces(); got != before {
			t.Errorf("%s: left %s, had %s", name, got, before)
		}
	}
}

func TestJoinRefusesAnotherContainersInterface(t *testing.T) {
	host, outside := newNamespace(t), newNamespace(t)
	host.veth("eth0", 1500, outside)
	taps := openTaps(host, 2)
	iface := scanOne(host)
	join(host, iface, taps[0])
	before := host.traces()
	host.do(func() error {
		if _, err := Join(Pair{iface, taps[1], noAntiSpoof}); !errors.Is(err, ErrJoined) {
			t.Errorf("second join: %v, want ErrJoined", err)
		}
		return nil
	})
	if got := host.traces(); got != before {
		t.Errorf("a refused join left %s, had %s", got, before)
	}
	// When the other container is dead, its redirection does not prevent a new one.
	CloseTaps(taps[:1])
	join(host, iface, taps[1])
}

func TestLeave(t *testing.T) { eachWay(t, leaves) }

func leaves(t *testing.T, antiSpoof AntiSpoof) {
	host, outside := newNamespace(t), newNamespace(t)
	host.veth("eth0", 1500, outside)
	host.veth("eth1", 1500, outside)
	taps := openTaps(host, 2)
	host.do(func() error {
		found, _, err := Scan()
		if err != nil {
			return err
		}
		_, err = Join(Pair{found[0], taps[0], antiSpoof}, Pair{found[1], taps[1], antiSpoof})
		return err
	})
	CloseTaps(taps[:1])
	for range 2 {
		if err := Leave(host.path()); err != nil {
			t.Fatal(err)
		}
		got := host.traces()
		if strings.Contains(got, "eth0") || strings.Contains(got, "husk0") || !strings.Contains(got, "ingress on eth1 with") {
			t.Fatalf("left %q, want eth1 joined still and eth0 not", got)
		}
	}
	if err := Leave(host.path(), taps[1].Index); err != nil {
		t.Fatal(err)
	}
	if got := host.traces(); strings.Contains(got, "eth1") || strings.Contains(got, "hop") {
		t.Errorf("left %q for a tap it was to leave", got)
	}
}

// TestStaleHop: a killed supervisor has left its hop, and the next container's tap has the same
// name.
func TestStaleHop(t *testing.T) {
	host, outside := newNamespace(t), newNamespace(t)
	host.veth("eth0", 1500, outside)
	iface := scanOne(host)
	var links *Links
	for range 2 {
		taps := openTaps(host, 1)
		if taps[0].Name != "husk0" {
			t.Fatalf("the tap is %s", taps[0].Name)
		}
		links = joinFrom(host, iface, taps[0], ownAntiSpoof(SpoofNothing))
		if got := strings.Count(host.traces(), "hop "); got != 2 {
			t.Errorf("%d ends of hops, want 2: %s", got, host.traces())
		}
		if scanned := scanOne(host); scanned.Index != iface.Index {
			t.Errorf("found %+v", scanned)
		}
		CloseTaps(taps)
	}
	host.do(links.Undo)
	if got := host.traces(); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

func TestLeaveWithoutNamespace(t *testing.T) {
	plain := t.TempDir() + "/ns"
	if err := Leave(plain); err != nil {
		t.Errorf("missing path: %v", err)
	}
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Leave(plain); err != nil {
		t.Errorf("plain file: %v", err)
	}
	if err := Leave("/proc/self/ns/uts"); os.Getuid() == 0 && err == nil {
		t.Error("entered a uts namespace")
	}
}

// TestJoinKeepsForeignQdisc: an ingress or clsact qdisc of the user is used, and stays.
func TestJoinKeepsForeignQdisc(t *testing.T) {
	for _, kind := range []string{"ingress", "clsact"} {
		host, outside := newNamespace(t), newNamespace(t)
		host.veth("eth0", 1500, outside)
		iface := scanOne(host)
		host.do(func() error {
			return netlink.QdiscAdd(&netlink.GenericQdisc{
				QdiscType:  kind,
				QdiscAttrs: netlink.QdiscAttrs{LinkIndex: iface.Index, Handle: ingressHandle, Parent: netlink.HANDLE_INGRESS},
			})
		})
		before := host.traces()
		taps := openTaps(host, 1)
		join(host, iface, taps[0])
		if got := host.traces(); !strings.Contains(got, kind+" on eth0 with 1 filters") {
			t.Errorf("%s: joined with %s", kind, got)
		}
		CloseTaps(taps)
		if err := Leave(host.path()); err != nil {
			t.Error(err)
		}
		if got := host.traces(); got != before {
			t.Errorf("%s: left %q, want %q", kind, got, before)
		}
	}
}

// TestPersist: a persistent tap outlives its descriptors. RemoveUnheldTaps removes it, and
// leaves one that a process has open.
func TestPersist(t *testing.T) {
	ns := newNamespace(t)
	names := func() (found []string) {
		ns.do(func() error {
			links, err := dump(netlink.LinkList)
			for _, l := range links {
				if isOurTap(l) || tapOfHop(l) != "" {
					found = append(found, l.Attrs().Name)
				}
			}
			slices.Sort(found)
			return err
		})
		return found
	}
	taps := openTaps(ns, 3)
	for _, tap := range taps[:2] {
		if err := tap.Persist(); err != nil {
			t.Fatal(err)
		}
	}
	ns.veth("eth0", 1500, newNamespace(t))
	joinFrom(ns, scanOne(ns), taps[0], ownAntiSpoof(SpoofNothing))
	CloseTaps(taps[:1])
	CloseTaps(taps[2:])
	if got := names(); !slices.Equal(got, []string{"husk0", "husk0in", "husk0out", "husk1"}) {
		t.Fatalf("taps after closing a kept and another: %v", got)
	}
	ns.do(RemoveUnheldTaps)
	if got := names(); !slices.Equal(got, []string{"husk1"}) {
		t.Errorf("taps after the removal of those unheld: %v", got)
	}
}
