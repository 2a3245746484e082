package machine

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/linux/nftables"
)

// TestIsStale: an exec finds out itself whether the namespace has changed. Here the watch has
// reported nothing, as on a busy machine.
func TestIsStale(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread() // never unlocked, so the thread ends with the test's goroutine
	outside, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	inside, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	n := &Network{followed: true}
	look := func() {
		t.Helper()
		var err error
		if n.generation, err = nftables.Generation(); err != nil {
			t.Fatal(err)
		}
		if n.found, _, err = network.Scan(); err != nil {
			t.Fatal(err)
		}
	}
	stale := func(what string, want bool) {
		t.Helper()
		if got := n.isStale(); got != want {
			t.Errorf("%s: stale is %v, want %v", what, got, want)
		}
	}
	look()
	stale("nothing has changed", false)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer", PeerNamespace: netlink.NsFd(int(outside))}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	stale("an interface is there", true)
	look()
	stale("and is known", false)
	address, err := netlink.ParseAddr("10.9.0.2/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(veth, address); err != nil {
		t.Fatal(err)
	}
	stale("it has an address", true)
	look()
	table := nftables.Message{Type: unix.NFT_MSG_NEWTABLE, Family: unix.NFPROTO_IPV4, Attributes: []byte{6, 0, unix.NFTA_TABLE_NAME, 0, 't', 0, 0, 0}}
	if err := nftables.Replace(nil, []nftables.Message{table}); err != nil {
		t.Fatal(err)
	}
	stale("the packet filter has changed", true)
	n.followed = false
	stale("before start", false)
}
