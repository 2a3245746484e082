package network

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestMove(t *testing.T) {
	from, to := newNamespace(t), newNamespace(t)
	from.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "give0", 1789
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "stay0"}); err != nil {
			return err
		}
		link, err := netlink.LinkByName("give0")
		if err != nil {
			return err
		}
		for _, text := range []string{"169.254.169.77/32", "10.1.2.3/24"} {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				return err
			}
		}
		local, err := netlink.ParseAddr("127.0.0.33/8")
		if err != nil {
			return err
		}
		local.Scope = int(netlink.SCOPE_HOST)
		if err := netlink.AddrAdd(link, local); err != nil {
			return err
		}
		if err := Move("give0", "stay0", to.f); err != nil { // the interface's own name exists there
			return err
		}
		if _, err := netlink.LinkByName("give0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
			t.Errorf("it is still here: %v", err)
		}
		if err := Move("none0", "", to.f); !errors.As(err, &netlink.LinkNotFoundError{}) {
			t.Errorf("one that is not there: %v", err)
		}
		return nil
	})
	to.do(func() error {
		found, _, err := Scan()
		if err != nil {
			return err
		}
		if len(found) != 1 || found[0].Name != "stay0" || found[0].MTU != 1789 || !found[0].Up {
			t.Fatalf("found %+v", found)
		}
		var global []string
		for _, a := range found[0].Addresses {
			if a[0] == '1' { // not the link-local address
				global = append(global, a)
			}
		}
		if len(global) != 2 || global[0] != "169.254.169.77/32" || global[1] != "10.1.2.3/24" {
			t.Errorf("addresses %v", found[0].Addresses)
		}
		return nil
	})
}
