package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace without a path. It ends when its descriptor is closed.
type namespace struct {
	t *testing.T
	f *os.File
}

// newNamespace makes a network namespace in which lo is up.
func newNamespace(t *testing.T) *namespace {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	ns := &namespace{t: t}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread ends here
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			errc <- err
			return
		}
		var err error
		if ns.f, err = os.Open("/proc/thread-self/ns/net"); err == nil {
			err = netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}})
		}
		errc <- err
	}()
	if err := <-errc; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { ns.f.Close() })
	return ns
}

func (ns *namespace) path() string { return fmt.Sprintf("/proc/self/fd/%d", ns.f.Fd()) }

// do runs f in the namespace, and ends the test if it returns an error.
func (ns *namespace) do(f func() error) {
	ns.t.Helper()
	if err := inNamespace(int(ns.f.Fd()), f); err != nil {
		ns.t.Fatal(err)
	}
}

// veth makes a veth pair: one end in this namespace, and its peer, whose name has an "x"
// appended, in other. Both are down.
func (ns *namespace) veth(name string, mtu int, other *namespace) {
	ns.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	ns.do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     attrs,
			PeerName:      name + "x",
			PeerNamespace: netlink.NsFd(int(other.f.Fd())),
			PeerMTU:       uint32(mtu),
		})
	})
}

// configure brings the interface up and adds the addresses, without duplicate address
// detection.
func configure(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s: %w", s, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// traces lists what husk makes in a namespace: taps, hops and qdiscs.
func (ns *namespace) traces() string {
	ns.t.Helper()
	var out []string
	ns.do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if isOurTap(l) {
				out = append(out, "tap "+l.Attrs().Name)
			}
			if tapOfHop(l) != "" {
				out = append(out, "hop "+l.Attrs().Name)
			}
			kind, err := ingressKind(l)
			if err != nil {
				return err
			}
			if kind == "" {
				continue
			}
			filters, err := listIngressFilters(l)
			if err != nil {
				return err
			}
			out = append(out, fmt.Sprintf("%s on %s with %d filters", kind, l.Attrs().Name, len(filters)))
		}
		return nil
	})
	return strings.Join(out, "; ")
}

// packetConn is an AF_PACKET socket for one ethertype on one interface.
type packetConn struct {
	t *testing.T
	f *os.File
}

const testEthertype = 0x88b5 // for local experiments (IEEE 802)

func (ns *namespace) packetConn(name string) *packetConn {
	ns.t.Helper()
	return ns.packets(name, testEthertype)
}

// anyFrame is packetConn for all ethertypes.
func (ns *namespace) anyFrame(name string) *packetConn {
	ns.t.Helper()
	return ns.packets(name, unix.ETH_P_ALL)
}

func (ns *namespace) packets(name string, ethertype uint16) *packetConn {
	ns.t.Helper()
	p := &packetConn{t: ns.t}
	ns.do(func() error {
		link, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		p.f = os.NewFile(uintptr(fd), "packet:"+name)
		return unix.Bind(fd, &unix.SockaddrLinklayer{
			Protocol: ethertype>>8 | ethertype<<8,
			Ifindex:  link.Index,
		})
	})
	ns.t.Cleanup(func() { p.f.Close() })
	return p
}

// recv returns the next frame, or nil if none comes in time.
func (p *packetConn) recv(within time.Duration) []byte {
	p.t.Helper()
	return readFrame(p.t, p.f, within, func([]byte) bool { return true })
}

// readFrame reads packets from f until wanted returns true for one. It returns nil if none
// comes in time.
func readFrame(t *testing.T, f *os.File, within time.Duration, wanted func([]byte) bool) []byte {
	t.Helper()
	if err := f.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 70000)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			t.Fatalf("read frame: %v", err)
		}
		if wanted(buf[:n]) {
			return buf[:n]
		}
	}
}

// testFrame returns a broadcast frame of the test's ethertype.
func testFrame(payload string) []byte {
	frame := append([]byte{}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // broadcast
	frame = append(frame, 0x02, 0, 0, 0, 0, 1)
	frame = append(frame, testEthertype>>8, testEthertype&0xff)
	return append(frame, payload...)
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
