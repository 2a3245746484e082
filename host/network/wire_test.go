package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// guest makes a namespace that stands for a guest. Its only interface is a tap whose frames,
// with their virtio headers, are copied from and to the host's tap as a vmm does, and it is
// configured only from the message that the agent gets. So offloads behave as with a virtual
// machine: checksums and segmentation are left to the reader of a frame.
func guest(t *testing.T, tap *Tap, iface *protocol.Interface) *namespace {
	t.Helper()
	ns := newNamespace(t)
	card := openTaps(ns, 1)[0]
	for _, f := range []*os.File{card.File, tap.File} {
		const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOFFLOAD, offloads); err != nil {
			t.Fatalf("set offloads: %v", err)
		}
		if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
			t.Fatal(err)
		}
	}
	ns.do(func() error { return configureGuest(card, iface) })
	carry(t, card.File, tap.File)
	carry(t, tap.File, card.File)
	return ns
}

// carry copies packets until the test ends.
func carry(t *testing.T, from, to *os.File) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 70000)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return // the deadline below
			}
			// A tap that is down refuses packets. A wire may lose frames too.
			_, _ = to.Write(buf[:n])
		}
	}()
	t.Cleanup(func() {
		if err := from.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Errorf("stop carrying: %v", err)
			return
		}
		<-done
	})
}

// configureGuest does the least of what the agent does.
func configureGuest(card *Tap, iface *protocol.Interface) error {
	link, err := netlink.LinkByIndex(card.Index)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(iface.Mac)
	if err != nil {
		return err
	}
	if err := errors.Join(
		netlink.LinkSetName(link, iface.Name),
		netlink.LinkSetHardwareAddr(link, mac),
		netlink.LinkSetMTU(link, int(iface.Mtu)),
		configure(iface.Name, iface.Addresses...),
	); err != nil {
		return err
	}
	for _, r := range iface.Routes {
		route := netlink.Route{
			LinkIndex: card.Index,
			Gw:        net.ParseIP(r.Gateway),
			Src:       net.ParseIP(r.Source),
			Scope:     netlink.Scope(r.Scope),
			Priority:  int(r.Priority),
			Family:    int(r.Family),
			Flags:     int(r.Flags),
		}
		if r.Destination != "" {
			if _, route.Dst, err = net.ParseCIDR(r.Destination); err != nil {
				return err
			}
		}
		if err := netlink.RouteAdd(&route); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add route %v: %w", r, err)
		}
	}
	return nil
}

// TestGuestTraffic sends real TCP and UDP traffic between a namespace outside and one that
// stands for a guest, through the host's namespace.
func TestGuestTraffic(t *testing.T) {
	for _, c := range []struct {
		mtu      int
		spoofing Spoofing
	}{{1500, SpoofAll}, {1500, SpoofNothing}, {9000, SpoofNothing}, {1280, SpoofNothing}, {1500, SpoofAddresses}} {
		mtu := c.mtu
		t.Run(fmt.Sprintf("mtu %d, forge %s", mtu, c.spoofing), func(t *testing.T) {
			host, outside := newNamespace(t), newNamespace(t)
			host.veth("eth0", mtu, outside)
			host.do(func() error {
				if err := configure("eth0", "10.7.0.2/24", "fd00:7::2/64"); err != nil {
					return err
				}
				link, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				for _, gw := range []string{"10.7.0.1", "fd00:7::1"} {
					if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
						return err
					}
				}
				return nil
			})
			// The last two are reached only through default routes.
			outside.do(func() error {
				return configure("eth0x", "10.7.0.1/24", "fd00:7::1/64", "192.0.2.9/32", "2001:db8::9/128")
			})
			tap := openTaps(host, 1)[0]
			iface := scanOne(host)
			joinFrom(host, iface, tap, AntiSpoofOf(&iface, []Interface{iface}, c.spoofing))
			inside := guest(t, tap, iface.ToProto(tap.MAC))

			ctx := testContext(t)
			for _, out := range []string{"10.7.0.1", "192.0.2.9", "fd00:7::1", "2001:db8::9"} {
				echoUDP(ctx, outside, inside, out)
			}
			transferTCP(ctx, outside, inside, "192.0.2.9")
			transferTCP(ctx, outside, inside, "2001:db8::9")
			transferTCP(ctx, inside, outside, "10.7.0.2")
			transferTCP(ctx, inside, outside, "fd00:7::2")
		})
	}
}

// echoUDP sends a datagram from one namespace to another and waits for it to come back. It
// repeats the datagram, because the first may be lost while ARP resolves the address.
func echoUDP(ctx context.Context, server, client *namespace, ip string) {
	server.t.Helper()
	var pc net.PacketConn
	server.do(func() (err error) {
		pc, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp", net.JoinHostPort(ip, "0"))
		return err
	})
	defer pc.Close()
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	client.do(func() error {
		c, err := (&net.Dialer{}).DialContext(ctx, "udp", pc.LocalAddr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		want := bytes.Repeat([]byte("dns?"), 120)
		got := make([]byte, 2000)
		for ctx.Err() == nil {
			if _, err := c.Write(want); err != nil {
				return err
			}
			if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			if n, err := c.Read(got); err == nil {
				if !bytes.Equal(got[:n], want) {
					return fmt.Errorf("udp to %s came back as %q", ip, got[:n])
				}
				return nil
			}
		}
		return fmt.Errorf("udp to %s: no answer", ip)
	})
}

// transferTCP sends 4 MiB in each direction over one connection, enough that segmentation is
// left to the last interface (GSO).
func transferTCP(ctx context.Context, server, client *namespace, ip string) {
	server.t.Helper()
	data := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	var l net.Listener
	server.do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(ip, "0"))
		return err
	})
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if got, err := io.ReadAll(c); err == nil {
			_, _ = c.Write(got)
		}
	}()
	client.do(func() error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		c := conn.(*net.TCPConn)
		if _, err := c.Write(data); err != nil {
			return fmt.Errorf("tcp to %s: %w", ip, err)
		}
		if err := c.CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, data) {
			return fmt.Errorf("tcp to %s: %d of %d bytes came back right: %w", ip, len(got), len(data), err)
		}
		return nil
	})
}
