package network

import (
	"encoding/binary"
	"net"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	ownMAC    = "02:42:0a:09:00:02"
	otherMAC  = "02:42:0a:09:00:63"
	ownEUI    = "fd00:9::42:aff:fe09:2" // made of ownMAC and the prefix
	broadcast = "ff:ff:ff:ff:ff:ff"
)

func ownAntiSpoof(spoofing Spoofing) AntiSpoof {
	return AntiSpoof{Spoofing: spoofing, MAC: ownMAC, Addresses: []string{
		"10.9.0.2/24", "10.8.0.7/32", "fd00:9::2/64", "fe80::2/64", "10.9.0.2/32",
	}}
}

func concat(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func mac(s string) []byte {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func be16(v ...uint16) (b []byte) {
	for _, n := range v {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return b
}

func ethernet(source string, ethertype uint16, payload ...[]byte) []byte {
	return concat(mac(broadcast), mac(source), be16(ethertype), concat(payload...))
}

func arpFrame(op uint16, senderMAC, senderIP string) []byte {
	return ethernet(ownMAC, unix.ETH_P_ARP, []byte{0, 1, 8, 0, 6, 4}, be16(op), mac(senderMAC), net.ParseIP(senderIP).To4(),
		make([]byte, 6), net.ParseIP("10.9.0.1").To4(), make([]byte, 18))
}

// ip4 returns a packet. Its header has options if words is more than 5.
func ip4(source string, protocol byte, words byte, fragment uint16, payload ...[]byte) []byte {
	return ethernet(ownMAC, unix.ETH_P_IP, []byte{0x40 | words, 0}, be16(100, 1, fragment), []byte{64, protocol, 0, 0},
		net.ParseIP(source).To4(), net.ParseIP("10.9.0.1").To4(), make([]byte, int(words-5)*4), concat(payload...))
}

func ip6(source string, next byte, payload ...[]byte) []byte {
	body := concat(payload...)
	return ethernet(ownMAC, unix.ETH_P_IPV6, []byte{0x60, 0, 0, 0}, be16(uint16(len(body))), []byte{next, 255},
		net.ParseIP(source).To16(), net.ParseIP("ff02::1").To16(), body)
}

func udp(from, to uint16) []byte { return concat(be16(from, to, 8, 0), make([]byte, 8)) }

func nd(kind byte, target string) []byte {
	return concat([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, net.ParseIP(target).To16(), []byte{1, 1}, mac(ownMAC))
}

// fragment6 returns a fragment header. offset is in bytes.
func fragment6(next byte, offset uint16) []byte {
	return concat([]byte{next, 0}, be16(offset|1), make([]byte, 4))
}

func TestAntiSpoofProgram(t *testing.T) {
	icmp6 := func(kind byte) []byte { return concat([]byte{kind, 0, 0, 0}, make([]byte, 16)) }
	tcp := make([]byte, 20)
	for name, c := range map[string]struct {
		frame []byte
		pass  bool
	}{
		"arp question":               {arpFrame(1, ownMAC, "10.9.0.2"), true},
		"arp answer":                 {arpFrame(2, ownMAC, "10.9.0.2"), true},
		"arp of another interface's": {arpFrame(2, ownMAC, "10.8.0.7"), true},
		"arp probe":                  {arpFrame(1, ownMAC, "0.0.0.0"), true},
		"arp for another":            {arpFrame(2, ownMAC, "10.9.0.1"), false},
		"arp with another MAC":       {arpFrame(2, otherMAC, "10.9.0.2"), false},
		"arp, cut":                   {arpFrame(1, ownMAC, "10.9.0.2")[:40], false},
		"arp of another network":     {ethernet(ownMAC, unix.ETH_P_ARP, []byte{0, 6, 8, 0, 6, 4}, be16(1), mac(ownMAC), make([]byte, 40)), false},

		"tcp":                       {ip4("10.9.0.2", unix.IPPROTO_TCP, 5, 0, tcp), true},
		"tcp with options":          {ip4("10.9.0.2", unix.IPPROTO_TCP, 15, 0, tcp), true},
		"tcp from another":          {ip4("10.9.0.3", unix.IPPROTO_TCP, 5, 0, tcp), false},
		"tcp from nowhere":          {ip4("0.0.0.0", unix.IPPROTO_TCP, 5, 0, tcp), false},
		"header too short":          {ip4("10.9.0.2", unix.IPPROTO_TCP, 5, 0, tcp)[:33], false},
		"IPv4 in name only":         {ethernet(ownMAC, unix.ETH_P_IP, make([]byte, 40)), false},
		"echo":                      {ip4("10.9.0.2", unix.IPPROTO_ICMP, 5, 0, []byte{8, 0, 0, 0}), true},
		"unreachable":               {ip4("10.9.0.2", unix.IPPROTO_ICMP, 5, 0, []byte{3, 3, 0, 0}), true},
		"redirect":                  {ip4("10.9.0.2", unix.IPPROTO_ICMP, 5, 0, []byte{5, 0, 0, 0}), false},
		"redirect behind options":   {ip4("10.9.0.2", unix.IPPROTO_ICMP, 6, 0, []byte{5, 0, 0, 0}), false},
		"router advertisement v4":   {ip4("10.9.0.2", unix.IPPROTO_ICMP, 5, 0, []byte{9, 0, 0, 0}), false},
		"icmp without a payload":    {ip4("10.9.0.2", unix.IPPROTO_ICMP, 5, 0), false},
		"igmp report":               {ip4("10.9.0.2", unix.IPPROTO_IGMP, 6, 0, []byte{0x22, 0, 0, 0}), true},
		"igmp report, no address":   {ip4("0.0.0.0", unix.IPPROTO_IGMP, 6, 0, []byte{0x16, 0, 0, 0}), true},
		"igmp query":                {ip4("10.9.0.2", unix.IPPROTO_IGMP, 6, 0, []byte{0x11, 0, 0, 0}), false},
		"udp":                       {ip4("10.9.0.2", unix.IPPROTO_UDP, 5, 0, udp(4000, 53)), true},
		"udp from another":          {ip4("10.9.0.1", unix.IPPROTO_UDP, 5, 0, udp(4000, 53)), false},
		"udp from port 67":          {ip4("10.9.0.2", unix.IPPROTO_UDP, 5, 0, udp(67, 4000)), true},
		"dhcp client":               {ip4("0.0.0.0", unix.IPPROTO_UDP, 5, 0, udp(68, 67)), true},
		"dhcp client renews":        {ip4("10.9.0.2", unix.IPPROTO_UDP, 5, 0, udp(68, 67)), true},
		"dhcp client forged":        {ip4("10.9.0.1", unix.IPPROTO_UDP, 5, 0, udp(68, 67)), false},
		"dhcp server":               {ip4("10.9.0.2", unix.IPPROTO_UDP, 5, 0, udp(67, 68)), false},
		"dhcp server, options":      {ip4("10.9.0.2", unix.IPPROTO_UDP, 15, 0, udp(67, 68)), false},
		"dhcp server, in fragments": {ip4("10.9.0.2", unix.IPPROTO_UDP, 5, 0x2000, udp(67, 68)), false},
		"udp from nowhere":          {ip4("0.0.0.0", unix.IPPROTO_UDP, 5, 0, udp(4000, 53)), false},
		"udp, cut":                  {ip4("10.9.0.2", unix.IPPROTO_UDP, 15, 0)[:50], false},
		"second fragment":           {ip4("10.9.0.2", unix.IPPROTO_UDP, 5, 185, make([]byte, 8)), true},
		"second fragment, forged":   {ip4("10.9.0.3", unix.IPPROTO_UDP, 5, 185, make([]byte, 8)), false},
		"IP in IP":                  {ip4("10.9.0.2", unix.IPPROTO_IPIP, 5, 0, tcp), false},
		"GRE":                       {ip4("10.9.0.2", unix.IPPROTO_GRE, 5, 0, tcp), false},

		"tcp6":                    {ip6("fd00:9::2", unix.IPPROTO_TCP, tcp), true},
		"tcp6, link-local":        {ip6("fe80::2", unix.IPPROTO_TCP, tcp), true},
		"tcp6, by own MAC":        {ip6(ownEUI, unix.IPPROTO_TCP, tcp), true},
		"tcp6 from another":       {ip6("fd00:9::3", unix.IPPROTO_TCP, tcp), false},
		"tcp6 from nowhere":       {ip6("::", unix.IPPROTO_TCP, tcp), false},
		"tcp6, cut":               {ip6("fd00:9::2", unix.IPPROTO_TCP)[:53], false},
		"IPv6 in name only":       {ethernet(ownMAC, unix.ETH_P_IPV6, make([]byte, 80)), false},
		"udp6":                    {ip6("fd00:9::2", unix.IPPROTO_UDP, udp(4000, 53)), true},
		"dhcp6 client":            {ip6("fe80::2", unix.IPPROTO_UDP, udp(546, 547)), true},
		"dhcp6 server":            {ip6("fe80::2", unix.IPPROTO_UDP, udp(547, 546)), false},
		"dhcp6 server, fragments": {ip6("fe80::2", unix.IPPROTO_FRAGMENT, fragment6(unix.IPPROTO_UDP, 0), udp(547, 546)), false},
		"echo6":                   {ip6("fd00:9::2", unix.IPPROTO_ICMPV6, icmp6(128)), true},
		"echo6 forged":            {ip6("fd00:9::1", unix.IPPROTO_ICMPV6, icmp6(128)), false},
		"too big":                 {ip6("fd00:9::2", unix.IPPROTO_ICMPV6, icmp6(2)), true},
		"router solicitation":     {ip6("fe80::2", unix.IPPROTO_ICMPV6, icmp6(133)), true},
		"same without an address": {ip6("::", unix.IPPROTO_ICMPV6, icmp6(133)), true},
		"router advertisement":    {ip6("fe80::2", unix.IPPROTO_ICMPV6, icmp6(134)), false},
		"redirect6":               {ip6("fe80::2", unix.IPPROTO_ICMPV6, icmp6(137)), false},
		"mld query":               {ip6("fe80::2", unix.IPPROTO_HOPOPTS, []byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp6(130)), false},
		"mld report":              {ip6("fe80::2", unix.IPPROTO_HOPOPTS, []byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp6(143)), true},
		"mld report, no address":  {ip6("::", unix.IPPROTO_HOPOPTS, []byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp6(143)), true},
		"mld report, forged":      {ip6("fe80::1", unix.IPPROTO_HOPOPTS, []byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp6(143)), false},
		"advertisement, hidden":   {ip6("fe80::2", unix.IPPROTO_HOPOPTS, []byte{58, 0, 1, 4, 0, 0, 0, 0}, icmp6(134)), false},
		"advertisement, deeper":   {ip6("fe80::2", unix.IPPROTO_HOPOPTS, []byte{60, 0, 1, 4, 0, 0, 0, 0}, []byte{58, 0, 1, 4, 0, 0, 0, 0}, icmp6(134)), false},
		"behind options":          {ip6("fe80::2", unix.IPPROTO_DSTOPTS, []byte{58, 0, 1, 4, 0, 0, 0, 0}, icmp6(134)), false},
		"behind routing":          {ip6("fe80::2", unix.IPPROTO_ROUTING, []byte{58, 0, 0, 0, 0, 0, 0, 0}, icmp6(134)), false},
		"solicitation":            {ip6("fd00:9::2", unix.IPPROTO_ICMPV6, nd(135, "fd00:9::1")), true},
		"address is free?":        {ip6("::", unix.IPPROTO_ICMPV6, nd(135, "fd00:9::2")), true},
		"address is taken":        {ip6("::", unix.IPPROTO_ICMPV6, nd(135, "fd00:9::3")), false},
		"own advertisement":       {ip6("fd00:9::2", unix.IPPROTO_ICMPV6, nd(136, "fd00:9::2")), true},
		"the same, by own MAC":    {ip6("fe80::2", unix.IPPROTO_ICMPV6, nd(136, ownEUI)), true},
		"another's":               {ip6("fd00:9::2", unix.IPPROTO_ICMPV6, nd(136, "fd00:9::1")), false},
		"another's, forged":       {ip6("fd00:9::1", unix.IPPROTO_ICMPV6, nd(136, "fd00:9::2")), false},
		"neighbour, cut":          {ip6("fd00:9::2", unix.IPPROTO_ICMPV6, nd(136, "fd00:9::2"))[:70], false},
		"echo6 in fragments":      {ip6("fd00:9::2", unix.IPPROTO_FRAGMENT, fragment6(58, 0), icmp6(128)), true},
		"rest of it":              {ip6("fd00:9::2", unix.IPPROTO_FRAGMENT, fragment6(58, 1448), make([]byte, 9)), true},
		"advertisement, in parts": {ip6("fe80::2", unix.IPPROTO_FRAGMENT, fragment6(58, 0), icmp6(134)), false},
		"first part, hidden":      {ip6("fe80::2", unix.IPPROTO_FRAGMENT, fragment6(60, 0), []byte{58, 0, 1, 4, 0, 0, 0, 0}, icmp6(134)), false},
		"second part, hidden":     {ip6("fe80::2", unix.IPPROTO_FRAGMENT, fragment6(60, 8), make([]byte, 16)), false},
		"udp6 in fragments":       {ip6("fd00:9::2", unix.IPPROTO_FRAGMENT, fragment6(17, 0), udp(4000, 53)), true},
		"tcp6 in fragments":       {ip6("fd00:9::2", unix.IPPROTO_FRAGMENT, fragment6(6, 0), tcp), true},
		"fragments, forged":       {ip6("fd00:9::3", unix.IPPROTO_FRAGMENT, fragment6(17, 1448), make([]byte, 9)), false},

		"another MAC":         {ethernet(otherMAC, unix.ETH_P_IP, ip4("10.9.0.2", 6, 5, 0, tcp)[14:]), false},
		"VLAN in the frame":   {ethernet(ownMAC, unix.ETH_P_8021Q, be16(5, unix.ETH_P_IP), ip4("10.9.0.2", 6, 5, 0, tcp)[14:]), false},
		"two tags":            {ethernet(ownMAC, unix.ETH_P_8021AD, be16(5, unix.ETH_P_8021Q, 6, unix.ETH_P_IP), tcp), false},
		"reverse ARP":         {ethernet(ownMAC, 0x8035, arpFrame(3, ownMAC, "10.9.0.2")[14:]), false},
		"spanning tree":       {ethernet(ownMAC, 38, []byte{0x42, 0x42, 3}, make([]byte, 35)), false},
		"LLDP":                {ethernet(ownMAC, 0x88cc, make([]byte, 46)), false},
		"not even Ethernet's": {ethernet(ownMAC, unix.ETH_P_IP)[:13], false},
		"nothing":             {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := passes(t, ownAntiSpoof(SpoofNothing), c.frame); got != c.pass {
				t.Errorf("passes: %v, want %v: %x", got, c.pass, c.frame)
			}
			sender := len(c.frame) >= 14 && string(c.frame[6:12]) == string(mac(ownMAC))
			if got := passes(t, ownAntiSpoof(SpoofAddresses), c.frame); got != sender {
				t.Errorf("with CAP_NET_RAW: passes: %v, want %v", got, sender)
			}
		})
	}
}

// passes runs the filter as the kernel does. VLAN tags are checked separately, because they are
// not in a frame.
func passes(t *testing.T, s AntiSpoof, frame []byte) bool {
	t.Helper()
	program, err := antiSpoofProgram(s, false)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	verdict, err := vm.Run(frame)
	if err != nil {
		t.Fatal(err)
	}
	switch uint32(verdict) {
	case verdictPass:
		return true
	case verdictDrop:
		return false
	}
	t.Errorf("verdict %#x lets the frame to the host's stack: %x", uint32(verdict), frame)
	return false
}

// TestAntiSpoofProgramOfAnyLength: no load is beyond the end of a frame. Such a frame would pass to
// the host's stack.
func TestAntiSpoofProgramOfAnyLength(t *testing.T) {
	for _, frame := range [][]byte{
		arpFrame(1, ownMAC, "10.9.0.2"), ip4("10.9.0.2", unix.IPPROTO_UDP, 15, 0, udp(67, 69)), ip4("10.9.0.2", unix.IPPROTO_ICMP, 5, 0, make([]byte, 8)),
		ip6("fd00:9::2", unix.IPPROTO_ICMPV6, nd(136, "fd00:9::2")), ip6("fd00:9::2", unix.IPPROTO_FRAGMENT, fragment6(17, 0), udp(1, 2)),
		ip6("::", unix.IPPROTO_ICMPV6, nd(135, "fd00:9::2")), ip6("fe80::2", unix.IPPROTO_HOPOPTS, []byte{58, 0, 5, 2, 0, 0, 1, 0}, make([]byte, 8)),
	} {
		for n := range frame {
			passes(t, ownAntiSpoof(SpoofNothing), frame[:n])
		}
	}
}

func FuzzAntiSpoofProgram(f *testing.F) {
	f.Add(arpFrame(1, ownMAC, "10.9.0.2"))
	f.Add(ip4("10.9.0.2", unix.IPPROTO_UDP, 15, 0, udp(67, 69)))
	f.Add(ip6("fd00:9::2", unix.IPPROTO_FRAGMENT, fragment6(58, 0), udp(1, 2)))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if passes(t, ownAntiSpoof(SpoofNothing), frame) && (len(frame) < 14 || string(frame[6:12]) != string(mac(ownMAC))) {
			t.Errorf("a frame of another passes: %x", frame)
		}
	})
}

// TestAntiSpoofProgramTakesManyAddresses: a filter with the most addresses has no more than 4096
// instructions.
func TestAntiSpoofProgramTakesManyAddresses(t *testing.T) {
	s := AntiSpoof{Spoofing: SpoofNothing, MAC: ownMAC}
	for i := range maxAntiSpoofAddresses {
		s.Addresses = append(s.Addresses, (&net.IPNet{IP: net.IP{0xfd, 14: byte(i >> 8), 15: byte(i)}, Mask: net.CIDRMask(64, 128)}).String())
	}
	program, err := antiSpoofProgram(s, true)
	if err != nil || len(program) > 4096 {
		t.Errorf("%d instructions, %v", len(program), err)
	}
	if !passes(t, s, ip6("fd00::7f", unix.IPPROTO_TCP, make([]byte, 20))) {
		t.Error("what is sent from the last address is dropped")
	}
	s.Addresses = append(s.Addresses, "10.0.0.1/8")
	if _, err := antiSpoofProgram(s, true); err == nil {
		t.Error("more addresses than the filter has room for are no error")
	}
}
