//go:build integration

package integration

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netNS is a network namespace with a path, as engines make them.
type netNS struct {
	t    *testing.T
	path string
	kept *os.File // keeps the namespace after remove, for the leak check
}

func (e *env) netNS() *netNS {
	e.t.Helper()
	path := filepath.Join(e.dir, fmt.Sprintf("netns%d", e.number()))
	writeFile(e.t, path, "")
	n := &netNS{t: e.t, path: path}
	done := make(chan error, 1)
	go func() {
		// The goroutine is not unlocked, so the thread, which is in the namespace, ends with
		// it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	}()
	if err := <-done; err != nil {
		e.t.Fatal(err)
	}
	kept, err := os.Open(path)
	if err != nil {
		e.t.Fatal(err)
	}
	n.kept = kept
	e.mu.Lock()
	e.namespaces = append(e.namespaces, n)
	e.mu.Unlock()
	n.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return n
}

// remove unmounts the path, so that the leak check finds no mount. The namespace lives until
// the leak check has looked into it.
func (n *netNS) remove() {
	n.t.Helper()
	if err := unix.Unmount(n.path, unix.MNT_DETACH); err != nil {
		n.t.Error(err)
	}
}

// do runs f on a thread in the namespace. Sockets opened there stay there.
func (n *netNS) do(f func() error) {
	n.t.Helper()
	if err := n.try(f); err != nil {
		n.t.Fatal(err)
	}
}

func (n *netNS) try(f func() error) error {
	path := n.path
	if n.kept != nil {
		path = fmt.Sprintf("/proc/self/fd/%d", n.kept.Fd())
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		handle, err := netns.GetFromPath(path)
		if err != nil {
			done <- err
			return
		}
		defer handle.Close()
		if err := netns.Set(handle); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func addr(t *testing.T, cidr string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags |= unix.IFA_F_NODAD
	return a
}

// wire connects two namespaces by a veth pair: "eth0" in inner with the address .2 and a
// default route, "host0" in outer with .1.
func wire(t *testing.T, outer, inner *netNS, mtu int) {
	t.Helper()
	mac, _ := net.ParseMAC("02:42:ac:11:00:02")
	outer.do(func() error {
		target, err := netns.GetFromPath(inner.path)
		if err != nil {
			return err
		}
		defer target.Close()
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "host0", MTU: mtu}, PeerName: "eth0",
			PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(int(target)),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return errors.Join(
			netlink.AddrAdd(veth, addr(t, "10.99.0.1/24")), netlink.AddrAdd(veth, addr(t, "fd99::1/64")), netlink.LinkSetUp(veth),
			// An address behind the gateway shows that routes are used.
			netlink.AddrAdd(veth, addr(t, "10.98.0.1/32")), netlink.AddrAdd(veth, addr(t, "fd98::1/128")),
		)
	})
	inner.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := errors.Join(
			netlink.AddrAdd(link, addr(t, "10.99.0.2/24")), netlink.AddrAdd(link, addr(t, "10.99.0.3/24")),
			netlink.AddrAdd(link, addr(t, "fd99::2/64")), netlink.LinkSetMTU(link, mtu), netlink.LinkSetUp(link),
		); err != nil {
			return err
		}
		_, specific, _ := net.ParseCIDR("10.97.0.0/16")
		return errors.Join(
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP("10.99.0.1")}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP("fd99::1")}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: specific, Gw: net.ParseIP("10.99.0.1"), Priority: 55}),
			netlink.NeighAdd(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP("10.99.0.77"),
				HardwareAddr: mac, Family: netlink.FAMILY_V4,
			}),
		)
	})
}

func TestNetworkOnlyLoopback(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.ok("run", "--bundle", e.bundle(withScript("ls /sys/class/net; ping -c1 -W2 127.0.0.1 >/dev/null && echo v4; ping -c1 -W2 ::1 >/dev/null && echo v6")), e.id())
	if r != "lo\nv4\nv6\n" {
		t.Errorf("with a new namespace: %q", r)
	}
}

func TestNetworkVeth(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	outer, inner := e.netNS(), e.netNS()
	defer outer.remove()
	defer inner.remove()
	wire(t, outer, inner, 1400)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), withNetNS(inner.path), func(s *specs.Spec) {
		s.Process.Capabilities.Ambient = nil
	}))

	t.Run("configuration", func(t *testing.T) {
		r := c.exec("sh", "-c", "ls /sys/class/net; cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ip addr; ip route; ip -6 route; ip neigh").is(0)
		for _, w := range []string{
			"eth0\nlo\n", "02:42:ac:11:00:02\n1400\n", "inet 10.99.0.2/24", "inet 10.99.0.3/24", "inet6 fd99::2/64",
			"default via 10.99.0.1", "10.97.0.0/16 via 10.99.0.1", "metric 55", "default via fd99::1", "10.99.0.77",
		} {
			if !strings.Contains(r.stdout, w) {
				t.Errorf("configuration lacks %q:\n%s", w, r.stdout)
			}
		}
	})
	t.Run("ping", func(t *testing.T) {
		for _, target := range []string{"10.99.0.1", "10.98.0.1", "fd99::1", "fd98::1"} {
			if r := c.exec("ping", "-c", "2", "-W", "5", target); r.code != 0 {
				t.Errorf("ping %s: %s%s", target, r.stdout, r.stderr)
			}
		}
		// Packets of the full MTU arrive, and larger ones are refused.
		if r := c.exec("ping", "-c", "1", "-W", "5", "-s", "1372", "10.99.0.1"); r.code != 0 {
			t.Errorf("ping of the full MTU: %s%s", r.stdout, r.stderr)
		}
	})
	t.Run("tcp out v4", func(t *testing.T) { tcpOut(t, c, outer, "tcp4", "10.98.0.1:7001") })
	t.Run("tcp out v6", func(t *testing.T) { tcpOut(t, c, outer, "tcp6", "[fd98::1]:7002") })
	t.Run("tcp in v4", func(t *testing.T) { tcpIn(t, c, outer, "10.99.0.2:7003") })
	t.Run("tcp in v6", func(t *testing.T) { tcpIn(t, c, outer, "[fd99::2]:7004") })
	t.Run("dns over udp", func(t *testing.T) { dnsQuery(t, c, outer) })
	c.stop()
	inner.do(func() error { return sameAsBefore("eth0") })
}

// sameAsBefore checks that the engine's interface is unchanged, without another one beside it
// and without a queueing discipline.
func sameAsBefore(name string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		if n := link.Attrs().Name; n != name && n != "lo" {
			return fmt.Errorf("network device %s is left in the namespace", n)
		}
	}
	return errors.Join(leftByRuntime()...)
}

// leftByRuntime returns what a runtime has left in the network namespace of this thread: taps,
// and the queueing disciplines that redirect to them. No test makes any itself.
func leftByRuntime() []error {
	links, err := netlink.LinkList()
	if err != nil {
		return []error{err}
	}
	var left []error
	for _, link := range links {
		if link.Type() == "tuntap" {
			left = append(left, fmt.Errorf("network device %s", link.Attrs().Name))
		}
		qdiscs, err := netlink.QdiscList(link)
		if err != nil {
			left = append(left, err)
		}
		for _, q := range qdiscs {
			if q.Type() == "ingress" || q.Type() == "clsact" {
				left = append(left, fmt.Errorf("%s qdisc on %s", q.Type(), link.Attrs().Name))
			}
		}
	}
	return left
}

const transferMiB = 8

func tcpOut(t *testing.T, c *container, outer *netNS, network, address string) {
	t.Helper()
	var l net.Listener
	outer.do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			got <- err.Error()
			return
		}
		defer conn.Close()
		sum := sha256.New()
		n, err := io.Copy(sum, conn)
		got <- fmt.Sprintf("%d %x\n", n, sum.Sum(nil))
		_ = err
	}()
	r := c.exec("testprog", "tcp", "send", address, fmt.Sprint(transferMiB)).is(0)
	if outside := <-got; outside != r.stdout {
		t.Errorf("sent %s, received %s", r.stdout, outside)
	}
}

func tcpIn(t *testing.T, c *container, outer *netNS, address string) {
	t.Helper()
	p := c.e.start(call{}, "exec", c.id, "testprog", "tcp", "serve", address)
	p.stdout.expect(t, "listening\n")
	sum := sha256.New()
	outer.do(func() error {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		block := make([]byte, 1<<20)
		for i := range transferMiB {
			block[7] = byte(i)
			if _, err := io.MultiWriter(conn, sum).Write(block); err != nil {
				return err
			}
		}
		return nil
	})
	r := p.wait().is(0)
	if want := fmt.Sprintf("listening\n%d %x\n", transferMiB<<20, sum.Sum(nil)); r.stdout != want {
		t.Errorf("received %q, want %q", r.stdout, want)
	}
}

// dnsQuery makes busybox's resolver ask a server in the outer namespace.
func dnsQuery(t *testing.T, c *container, outer *netNS) {
	t.Helper()
	var server net.PacketConn
	outer.do(func() (err error) {
		server, err = net.ListenPacket("udp4", "10.99.0.1:53")
		return err
	})
	defer server.Close()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(dnsAnswer(buf[:n]), from)
		}
	}()
	r := c.exec("nslookup", "-type=a", "name.example.", "10.99.0.1")
	if !strings.Contains(r.stdout, "192.0.2.55") {
		t.Errorf("nslookup: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// dnsAnswer answers any question with 192.0.2.55.
func dnsAnswer(query []byte) []byte {
	answer := append([]byte{}, query[:12]...)
	answer[2], answer[3] = 0x81, 0x80 // response, recursion available, no error
	answer[6], answer[7] = 0, 1       // one answer
	answer[8], answer[9], answer[10], answer[11] = 0, 0, 0, 0
	end := 12
	for end < len(query) && query[end] != 0 {
		end += int(query[end]) + 1
	}
	answer = append(answer, query[12:min(end+5, len(query))]...)
	return append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 55)
}

// TestNetworkAppearsBeforeStart: Docker 28 and later wires the namespace between create and
// start.
func TestNetworkAppearsBeforeStart(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	outer, inner := e.netNS(), e.netNS()
	defer outer.remove()
	defer inner.remove()
	c := e.create(e.bundle(withScript("ip -o -4 addr show eth0 && ping -c 2 -W 5 10.99.0.1"), withNetNS(inner.path)))
	wire(t, outer, inner, 1500)
	e.ok("start", c.id)
	c.exits(0)
	if !strings.Contains(c.stdout.String(), "10.99.0.2/24") {
		t.Errorf("stdout %q", c.stdout)
	}
	e.ok("delete", c.id)
}

// TestNetworkThroughPID does the same in the new namespace of the pid, as dockerd does.
func TestNetworkThroughPID(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	outer := e.netNS()
	defer outer.remove()
	c := e.create(e.bundle(withScript("ping -c 2 -W 5 10.99.0.1")))
	wire(t, outer, &netNS{t: t, path: fmt.Sprintf("/proc/%d/ns/net", c.pid)}, 1500)
	e.ok("start", c.id)
	c.exits(0)
	e.ok("delete", c.id)
	// The kernel destroys a network namespace some time after its last user has ended; one
	// worker does it for all.
	eventually(t, "the veth goes with the container's network namespace", testTimeout, func() bool {
		return outer.try(func() error {
			_, err := netlink.LinkByName("host0")
			return err
		}) != nil
	})
}

func TestNetworkNamespaceMissing(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	r := e.do("create", "--bundle", e.bundle(withoutNamespace(specs.NetworkNamespace)), e.id()).is(1)
	if !strings.Contains(r.stderr, "network namespace") {
		t.Errorf("the host's network is refused with %q", r.stderr)
	}
	r.oneLogLine(strings.TrimSpace(r.stderr))
	out := e.ok("run", "--bundle", e.bundle(withArgs("ls", "/sys/class/net"), withoutNamespace(specs.NetworkNamespace), func(s *specs.Spec) {
		s.Annotations = map[string]string{"org.huskvm.network": "none"}
	}), e.id())
	if out != "lo\n" {
		t.Errorf("annotated to run without network: %q", out)
	}
}

func TestNetworkTwoInterfaces(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	outer, inner := e.netNS(), e.netNS()
	defer outer.remove()
	defer inner.remove()
	inner.do(func() error {
		target, err := netns.GetFromPath(outer.path)
		if err != nil {
			return err
		}
		defer target.Close()
		for i, name := range []string{"eth0", "net1"} {
			veth := &netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: fmt.Sprintf("peer%d", i),
				PeerNamespace: netlink.NsFd(int(target)),
			}
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			if err := errors.Join(netlink.AddrAdd(veth, addr(t, fmt.Sprintf("10.99.%d.2/24", i))), netlink.LinkSetUp(veth)); err != nil {
				return err
			}
		}
		return nil
	})
	out := e.ok("run", "--bundle", e.bundle(withScript("ip -o -4 addr"), withNetNS(inner.path)), e.id())
	for _, w := range []string{"eth0", "10.99.0.2/24", "net1", "10.99.1.2/24"} {
		if !strings.Contains(out, w) {
			t.Errorf("addresses lack %q:\n%s", w, out)
		}
	}
}

// TestLeakCheckJudgesItsOwn: the leak check finds what is left in a namespace of the test, and
// is not disturbed by what others do in the host's network at the same time.
func TestLeakCheckJudgesItsOwn(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	name := "other" + e.tag[len(e.tag)-6:]
	others := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
	if err := netlink.LinkAdd(others); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.LinkDel(others); err != nil {
			t.Error(err)
		}
	}()
	if leaks := e.leaks(); len(leaks) > 0 {
		t.Errorf("of another's: %q", leaks)
	}
	own := e.netNS()
	var tap netlink.Link = &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "husk0"}, Mode: netlink.TUNTAP_MODE_TAP}
	own.do(func() error { return netlink.LinkAdd(tap) })
	own.do(func() error {
		return netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: tap.Attrs().Index, Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0),
		}})
	})
	own.remove()
	name = filepath.Base(own.path)
	want := []string{name + ": network device husk0", name + ": ingress qdisc on husk0"}
	if leaks := e.leaks(); !slices.Equal(leaks, want) {
		t.Errorf("of its own: %q, want %q", leaks, want)
	}
	own.do(func() error { return netlink.LinkDel(tap) })
}
