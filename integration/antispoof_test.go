//go:build integration

package integration

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// withoutCapabilities removes capabilities from the process.
func withoutCapabilities(names ...string) specOption {
	return func(s *specs.Spec) {
		c := s.Process.Capabilities
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted} {
			*set = slices.DeleteFunc(slices.Clone(*set), func(name string) bool { return slices.Contains(names, name) })
		}
	}
}

// withSettings makes the calls of e use the suite's settings with lines added.
func (e *env) withSettings(lines string) {
	e.t.Helper()
	e.settings = e.path("settings")
	writeFile(e.t, e.settings, readFile(e.t, settings)+lines)
}

// capture is a socket that receives every frame leaving an interface.
type capture struct {
	t *testing.T
	f *os.File
}

func (n *netNS) capture(name string) *capture {
	n.t.Helper()
	c := &capture{t: n.t}
	n.do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		c.f = os.NewFile(uintptr(fd), name)
		const all = unix.ETH_P_ALL << 8 // in the network's order
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	})
	n.t.Cleanup(func() { c.f.Close() })
	return c
}

// until returns the frames that come before the one with this end, as hexadecimal text without
// the destination address. It fails the test if that one does not come in time.
func (c *capture) until(end string) (frames []string) {
	c.t.Helper()
	if err := c.f.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	buf := make([]byte, 70000)
	for {
		n, err := c.f.Read(buf)
		if err != nil {
			c.t.Fatalf("the last frame has not arrived: %v; before it came %v", err, frames)
		}
		frame := hex.EncodeToString(buf[min(n, 6):n])
		if strings.HasSuffix(frame, end) {
			return frames
		}
		frames = append(frames, frame)
	}
}

const (
	ownFrameMAC   = "0242ac110002" // the address that wire sets
	otherFrameMAC = "0242ac110063"
	lastFrame     = "6c617374206672616d65" // the end of the last frame
)

// forgedFrame is a frame in hexadecimal. sent begins with a virtio header, which asks the card
// for work on the frame. arrives is a part of the frame as it arrives, if the card sends it.
type forgedFrame struct{ name, sent, arrives string }

const noOffload = "00000000000000000000"

// byChecksum returns a frame that is not forged when the guest sends it. Its header asks the host
// to write a checksum at a byte of the frame, and that checksum is the forged value.
func byChecksum(t *testing.T, name, frame string, at int, forged uint16) forgedFrame {
	t.Helper()
	b, err := hex.DecodeString(frame + hex.EncodeToString([]byte("forged: "+name)))
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, make([]byte, 2+len(b)%2)...) // the last two correct the sum
	const start = 20
	sum := uint32(0)
	for i := start; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	missing := (2*0xffff + uint32(^forged) - sum%0xffff) % 0xffff
	binary.BigEndian.PutUint16(b[len(b)-2:], uint16(missing))
	header := make([]byte, len(noOffload)/2)
	header[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.LittleEndian.PutUint16(header[6:], start)
	binary.LittleEndian.PutUint16(header[8:], uint16(at-start))
	sent := hex.EncodeToString(append(header, b...))
	binary.BigEndian.PutUint16(b[at:], forged)
	return forgedFrame{name, sent, hex.EncodeToString(b[6:])}
}

// withoutOffload makes the kernel compute the checksums of the frames that an interface sends.
func withoutOffload(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	off := [2]uint32{unix.ETHTOOL_STXCSUM, 0}
	request := struct {
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		_     [16]byte
	}{value: unsafe.Pointer(&off)}
	copy(request.name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("turn off checksum offload of %s: %w", name, errno)
	}
	return nil
}

// forgedFrames returns frames that each contain a text of their own, and a last one that may pass.
func forgedFrames(t *testing.T) (frames []forgedFrame, last string) {
	t.Helper()
	everybody := "ffffffffffff"
	ip4 := func(source, rest string) string {
		return "0800450000200001000040" + rest[:2] + "0000" + source + "0a630001" + rest[2:]
	}
	arp := func(mac, sender string) string {
		return "08060001080006040002" + mac + sender + "0242ac110001" + "0a630001"
	}
	ip6 := func(source, next, rest string) string {
		return "86dd600000000018" + next + "ff" + source + "ff020000000000000000000000000001" + rest
	}
	const own4, gateway4 = "0a630002", "0a630001"
	const own6, gateway6 = "fd990000000000000000000000000002", "fd990000000000000000000000000001"
	const udp = "110fa00035000c0000"
	for _, f := range [][2]string{
		{"another MAC", everybody + otherFrameMAC + ip4(own4, udp)},
		{"another IPv4 address", everybody + ownFrameMAC + ip4("0a630063", udp)},
		{"ARP for the gateway", everybody + ownFrameMAC + arp(ownFrameMAC, gateway4)},
		{"ARP for another MAC", everybody + ownFrameMAC + arp(otherFrameMAC, own4)},
		{"DHCP server", everybody + ownFrameMAC + ip4(own4, "1100430044000c0000")},
		{"ICMP redirect", everybody + ownFrameMAC + ip4(own4, "010501000000000000")},
		{"another IPv6 address", everybody + ownFrameMAC + ip6(gateway6, "11", "0fa0003500180000")},
		{"router advertisement", everybody + ownFrameMAC + ip6(own6, "3a", "8600000040000708")},
		{"neighbour advertisement", everybody + ownFrameMAC + ip6(own6, "3a", "8800000060000000"+gateway6)},
		{"VLAN", everybody + ownFrameMAC + "81000005" + ip4(own4, udp)},
		{"two VLANs", everybody + ownFrameMAC + "88a8000581000006" + ip4(own4, udp)},
		{"spanning tree", "0180c2000000" + ownFrameMAC + "0026424203"},
	} {
		text := hex.EncodeToString([]byte("forged: " + f[0]))
		frames = append(frames, forgedFrame{f[0], noOffload + f[1] + text, text})
	}
	return append(
		frames,
		byChecksum(t, "checksum over an IPv4 address", everybody+ownFrameMAC+ip4(own4, udp), 28, 0x0063),
		byChecksum(t, "checksum over the IP address of ARP", everybody+ownFrameMAC+arp(ownFrameMAC, own4), 30, 0x0001),
		byChecksum(t, "checksum over the MAC of ARP", everybody+ownFrameMAC+arp(ownFrameMAC, own4), 26, 0x0063),
	), noOffload + everybody + ownFrameMAC + ip4(own4, udp) + lastFrame
}

// TestForgedFramesStayInTheGuest: an exec'd process with CAP_NET_RAW, which the container
// lacks, stands for a hostile kernel in the guest that sends anything.
func TestForgedFramesStayInTheGuest(t *testing.T) {
	needVM(t)
	t.Parallel()
	for _, c := range []struct {
		name     string
		settings string
		options  []specOption
		arrive   []string // of the forged ones; "all"
	}{
		{name: "no capability", options: []specOption{withoutCapabilities("CAP_NET_RAW")}},
		{name: "CAP_NET_RAW", arrive: []string{"all", "another MAC"}},
		{name: "off", settings: "anti_spoofing = \"off\"", options: []specOption{withoutCapabilities("CAP_NET_RAW")}, arrive: []string{"all"}},
		{name: "off by annotation", settings: "unsafe_annotations = true", options: []specOption{
			withoutCapabilities("CAP_NET_RAW"), withAnnotation("org.huskvm.anti_spoofing", "off"),
		}, arrive: []string{"all"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			if c.settings != "" {
				e.withSettings(c.settings)
			}
			outer, inner := e.netNS(), e.netNS()
			defer outer.remove()
			defer inner.remove()
			wire(t, outer, inner, 1500)
			inner.do(func() error { return withoutOffload("eth0") })
			options := append([]specOption{withArgs("sleep", "1000"), withNetNS(inner.path)}, c.options...)
			box := e.createStarted(e.bundle(options...))
			heard := outer.capture("host0")
			frames, last := forgedFrames(t)
			send := []string{"exec", "--cap", "CAP_NET_RAW", box.id, "testprog", "offloaded-frames", "eth0"}
			for _, f := range frames {
				send = append(send, f.sent)
			}
			e.ok(append(send, last)...)
			arrived := strings.Join(heard.until(lastFrame), " ")
			for _, f := range frames {
				want := slices.Contains(c.arrive, "all") && !slices.Contains(c.arrive[1:], f.name)
				if got := strings.Contains(arrived, f.arrives); got != want {
					t.Errorf("forged frame %q arrives: %v, want %v", f.name, got, want)
				}
			}
			box.stop()
		})
	}
}

// TestNetworkWithoutRaw: frames that a container without CAP_NET_RAW may send arrive.
func TestNetworkWithoutRaw(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	outer, inner := e.netNS(), e.netNS()
	defer outer.remove()
	defer inner.remove()
	wire(t, outer, inner, 1500)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000"), withNetNS(inner.path), withoutCapabilities("CAP_NET_RAW")))
	tcpOut(t, c, outer, "tcp4", "10.98.0.1:7001")
	tcpOut(t, c, outer, "tcp6", "[fd98::1]:7002")
	tcpIn(t, c, outer, "10.99.0.3:7003")
	tcpIn(t, c, outer, "[fd99::2]:7004")
	dnsQuery(t, c, outer)
	bigDatagram(t, c, outer, "10.99.0.1:7005")
	bigDatagram(t, c, outer, "[fd99::1]:7006")

	// A new address may be used as soon as the container has it, and neighbours that ask for it
	// get an answer.
	inner.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(link, addr(t, "10.99.0.44/24")), netlink.AddrAdd(link, addr(t, "fd99::44/64")))
	})
	tcpIn(t, c, outer, "10.99.0.44:7007")
	tcpIn(t, c, outer, "[fd99::44]:7008")
	c.stop()
}

// bigDatagram sends more than fits into one packet.
func bigDatagram(t *testing.T, c *container, outer *netNS, address string) {
	t.Helper()
	heard := make(chan int, 1)
	outer.do(func() error {
		server, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		go func() {
			defer server.Close()
			buf := make([]byte, 70000)
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				n = 0
			} else {
				_, _ = server.WriteTo([]byte("heard"), from)
			}
			heard <- n
		}()
		return nil
	})
	c.exec("testprog", "udp", address, strings.Repeat("x", 6000)).is(0)
	if n := <-heard; n != 6000 {
		t.Errorf("%d bytes of 6000 arrive at %s", n, address)
	}
}

func TestAnnotationsMayNotWeaken(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	for _, a := range [][2]string{{"org.huskvm.anti_spoofing", "off"}, {"org.huskvm.uncarried_filters", "accept"}} {
		r := e.do("create", "--bundle", e.bundle(withAnnotation(a[0], a[1])), e.id()).is(1)
		if want := a[0] + ": annotations may not weaken isolation here"; !strings.Contains(r.stderr, want) {
			t.Errorf("stderr %q, want %q", r.stderr, want)
		}
	}
}
