package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// What the anti-spoofing filter returns: values of TC_ACT_*. A load beyond the end of a frame
// ends the program with 0, which would let the frame pass to the host's stack. So each load
// comes after a check of the length.
const (
	verdictPass = 0xffffffff // TC_ACT_UNSPEC: go on to the next filter, which redirects
	verdictDrop = 2          // TC_ACT_SHOT
)

// Offsets in an Ethernet frame without a VLAN tag, in bytes.
const (
	offSourceMAC = 6
	offType      = 12
	offNetwork   = 14

	offARPSenderMAC = offNetwork + 8
	offARPSenderIP  = offNetwork + 14
	lenARP          = offNetwork + 28

	offIPv4Fragment = offNetwork + 6
	offIPv4Protocol = offNetwork + 9
	offIPv4Source   = offNetwork + 12
	lenIPv4         = offNetwork + 20

	offIPv6Next    = offNetwork + 6
	offIPv6Source  = offNetwork + 8
	offIPv6Payload = offNetwork + 40
	offNDTarget    = offIPv6Payload + 8
	lenND          = offIPv6Payload + 24
	lenExtension   = 8
)

// Ports of DHCP and DHCPv6.
const (
	dhcpServer, dhcpClient   = 67, 68
	dhcp6Client, dhcp6Server = 546, 547
)

// Message types of IGMP, ICMP and ICMPv6, from their IANA registries.
const (
	igmpQuery        = 0x11
	icmpRedirect     = 5
	icmpRouterAdvert = 9

	icmp6Unreachable, icmp6ParameterProblem = 1, 4
	icmp6EchoRequest, icmp6EchoReply        = 128, 129
	mldReport, mldDone, mld2Report          = 131, 132, 143
	ndRouterSolicit                         = 133
	ndNeighborSolicit, ndNeighborAdvert     = 135, 136
)

// plainProtocols are protocols that a process without capabilities can send, and whose headers
// do not configure the network.
var plainProtocols = []uint32{unix.IPPROTO_TCP, unix.IPPROTO_DCCP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE}

// filterProgram is a program of classic BPF in which jumps have labels. All jumps lead forward.
type filterProgram struct {
	instructions []bpf.Instruction
	labels       map[string]int
	jumps        map[int]string // by the index of the jump
}

func (p *filterProgram) add(i ...bpf.Instruction) { p.instructions = append(p.instructions, i...) }

func (p *filterProgram) label(name string) { p.labels[name] = len(p.instructions) }

func (p *filterProgram) jump(label string) {
	p.jumps[len(p.instructions)] = label
	p.add(bpf.Jump{})
}

// when jumps to label if the comparison of the accumulator with value holds. A conditional jump
// reaches only 255 instructions, so it skips over an unconditional one.
func (p *filterProgram) when(c bpf.JumpTest, value uint32, label string) {
	p.add(bpf.JumpIf{Cond: c, Val: value, SkipFalse: 1})
	p.jump(label)
}

func (p *filterProgram) require(c bpf.JumpTest, value uint32) {
	p.add(bpf.JumpIf{Cond: c, Val: value, SkipTrue: 1})
	p.jump("drop")
}

func (p *filterProgram) load(offset uint32, size int) {
	p.add(bpf.LoadAbsolute{Off: offset, Size: size})
}

// mask clears all other bits of the accumulator.
func (p *filterProgram) mask(bits uint32) { p.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: bits}) }

// longer drops frames with fewer bytes.
func (p *filterProgram) longer(bytes uint32) {
	p.add(bpf.LoadExtension{Num: bpf.ExtLen})
	p.require(bpf.JumpGreaterOrEqual, bytes)
}

// requireBytes drops frames that do not have these bytes at offset. offset must be even.
func (p *filterProgram) requireBytes(offset uint32, want []byte) {
	for len(want) > 0 {
		if len(want) >= 4 {
			p.load(offset, 4)
			p.require(bpf.JumpEqual, binary.BigEndian.Uint32(want))
			offset, want = offset+4, want[4:]
			continue
		}
		p.load(offset, 2)
		p.require(bpf.JumpEqual, uint32(binary.BigEndian.Uint16(want)))
		offset, want = offset+2, want[2:]
	}
}

// whenBytes jumps to label if the frame has these bytes at offset. offset must be a multiple of
// four.
func (p *filterProgram) whenBytes(offset uint32, want []byte, label string) {
	words := len(want) / 4
	for i := range words {
		p.load(offset+uint32(4*i), 4)
		// On a difference skip the rest of the comparison and the jump.
		p.add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(want[4*i:]), SkipFalse: uint8(2*(words-1-i) + 1)})
	}
	p.jump(label)
}

// finish replaces the labels of jumps by distances.
func (p *filterProgram) finish() ([]bpf.Instruction, error) {
	for at, label := range p.jumps {
		to, known := p.labels[label]
		if !known || to <= at {
			return nil, fmt.Errorf("anti-spoofing filter: jump to %q leads nowhere", label)
		}
		p.instructions[at] = bpf.Jump{Skip: uint32(to - at - 1)}
	}
	return p.instructions, nil
}

// antiSpoofProgram returns a program that passes or drops one frame of a guest. With tags it also
// looks for a VLAN tag that the kernel has taken out of the frame.
func antiSpoofProgram(s AntiSpoof, tags bool) ([]bpf.Instruction, error) {
	mac, err := net.ParseMAC(s.MAC)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("anti-spoofing filter: %q is not an Ethernet address", s.MAC)
	}
	p := &filterProgram{labels: map[string]int{}, jumps: map[int]string{}}
	p.longer(offNetwork)
	p.requireBytes(offSourceMAC, mac)
	if s.Spoofing == SpoofNothing {
		v4, v6, err := parseAddresses(s.Addresses)
		if err != nil {
			return nil, err
		}
		if tags {
			p.add(bpf.LoadExtension{Num: bpf.ExtVLANTagPresent})
			p.require(bpf.JumpEqual, 0)
		}
		p.load(offType, 2)
		p.when(bpf.JumpEqual, unix.ETH_P_ARP, "arp")
		p.when(bpf.JumpEqual, unix.ETH_P_IP, "ipv4")
		p.when(bpf.JumpEqual, unix.ETH_P_IPV6, "ipv6")
		p.jump("drop")
		p.arp(mac)
		p.ipv4()
		p.ownIPv4(v4)
		p.ipv6()
		p.ownIPv6(v6, eui64(mac))
	}
	p.label("pass")
	p.add(bpf.RetConstant{Val: verdictPass})
	p.label("drop")
	p.add(bpf.RetConstant{Val: verdictDrop})
	return p.finish()
}

// arp passes requests and answers with the guest's own addresses, and requests without a
// sender's IP address, with which a host tests whether an address is free.
func (p *filterProgram) arp(mac net.HardwareAddr) {
	p.label("arp")
	p.longer(lenARP)
	p.requireBytes(offNetwork, []byte{0, 1, 8, 0, 6, 4}) // Ethernet, IPv4, and the sizes of their addresses
	p.requireBytes(offARPSenderMAC, mac)
	p.load(offARPSenderIP, 4)
	p.when(bpf.JumpEqual, 0, "pass")
	p.jump("own4")
}

func (p *filterProgram) ipv4() {
	p.label("ipv4")
	p.longer(lenIPv4)
	p.load(offNetwork, 1)
	p.require(bpf.JumpGreaterOrEqual, 0x45)
	p.require(bpf.JumpLessOrEqual, 0x4f)
	p.load(offIPv4Protocol, 1)
	for _, protocol := range plainProtocols {
		p.when(bpf.JumpEqual, protocol, "source4")
	}
	p.when(bpf.JumpEqual, unix.IPPROTO_UDP, "udp4")
	p.when(bpf.JumpEqual, unix.IPPROTO_ICMP, "icmp4")
	p.when(bpf.JumpEqual, unix.IPPROTO_IGMP, "igmp")
	p.jump("drop")

	p.label("udp4")
	p.payload4()
	p.add(bpf.LoadIndirect{Off: offNetwork, Size: 4}) // source and destination port
	p.when(bpf.JumpEqual, dhcpServer<<16|dhcpClient, "drop")
	p.when(bpf.JumpEqual, dhcpClient<<16|dhcpServer, "unnumbered4")
	p.jump("source4")

	p.label("icmp4")
	p.payload4()
	p.add(bpf.LoadIndirect{Off: offNetwork, Size: 1})
	p.when(bpf.JumpEqual, icmpRedirect, "drop")
	p.when(bpf.JumpEqual, icmpRouterAdvert, "drop")
	p.jump("source4")

	p.label("igmp")
	p.payload4()
	p.add(bpf.LoadIndirect{Off: offNetwork, Size: 1})
	p.when(bpf.JumpEqual, igmpQuery, "drop")

	p.label("unnumbered4") // what a host sends before it has an address
	p.load(offIPv4Source, 4)
	p.when(bpf.JumpEqual, 0, "pass")
	p.label("source4")
	p.load(offIPv4Source, 4)
	p.jump("own4")
}

// payload4 sets the index register to the length of the IPv4 header. For a fragment other than
// the first only the sender is checked: the fields to be checked are in the first eight bytes
// of the payload, which only the first fragment can have.
func (p *filterProgram) payload4() {
	p.load(offIPv4Fragment, 2)
	p.mask(0x1fff)
	p.when(bpf.JumpNotEqual, 0, "source4")
	p.add(
		bpf.LoadMemShift{Off: offNetwork},
		bpf.StoreScratch{Src: bpf.RegX, N: 0},
		bpf.TXA{}, bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: offNetwork + 4}, bpf.TAX{},
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIfX{Cond: bpf.JumpGreaterOrEqual, SkipTrue: 1},
	)
	p.jump("drop")
	p.add(bpf.LoadScratch{Dst: bpf.RegX, N: 0})
}

// ownIPv4 passes or drops by the address in the accumulator.
func (p *filterProgram) ownIPv4(own []net.IP) {
	p.label("own4")
	for _, ip := range own {
		p.when(bpf.JumpEqual, binary.BigEndian.Uint32(ip), "pass")
	}
	p.jump("drop")
}

// ipv6 passes no extension header except those of fragments and of multicast reports. A process
// needs CAP_NET_RAW to send others, and this filter does not see what follows them.
func (p *filterProgram) ipv6() {
	p.label("ipv6")
	p.longer(offIPv6Payload)
	p.load(offNetwork, 1)
	p.mask(0xf0)
	p.require(bpf.JumpEqual, 0x60)
	p.load(offIPv6Next, 1)
	for _, protocol := range plainProtocols {
		p.when(bpf.JumpEqual, protocol, "source6")
	}
	p.when(bpf.JumpEqual, unix.IPPROTO_UDP, "udp6")
	p.when(bpf.JumpEqual, unix.IPPROTO_ICMPV6, "icmp6")
	p.when(bpf.JumpEqual, unix.IPPROTO_FRAGMENT, "fragment6")
	p.require(bpf.JumpEqual, unix.IPPROTO_HOPOPTS)

	p.longer(offIPv6Payload + lenExtension + 1)
	p.requireBytes(offIPv6Payload, []byte{unix.IPPROTO_ICMPV6, 0})
	p.load(offIPv6Payload+lenExtension, 1)
	for _, t := range []uint32{mldReport, mldDone, mld2Report} {
		p.when(bpf.JumpEqual, t, "unnumbered6")
	}
	p.jump("drop")

	p.label("fragment6")
	p.longer(offIPv6Payload + lenExtension)
	p.load(offIPv6Payload+2, 2)
	p.mask(0xfff8)
	p.when(bpf.JumpEqual, 0, "first6")
	// The first fragment says which protocol it is, but not every receiver has to believe it.
	p.load(offIPv6Payload, 1)
	for _, protocol := range slices.Concat(plainProtocols, []uint32{unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6}) {
		p.when(bpf.JumpEqual, protocol, "source6")
	}
	p.jump("drop")
	p.label("first6")
	p.load(offIPv6Payload, 1)
	for _, protocol := range plainProtocols {
		p.when(bpf.JumpEqual, protocol, "source6")
	}
	p.when(bpf.JumpEqual, unix.IPPROTO_UDP, "firstudp6")
	p.require(bpf.JumpEqual, unix.IPPROTO_ICMPV6)
	p.longer(offIPv6Payload + lenExtension + 1)
	p.load(offIPv6Payload+lenExtension, 1)
	p.when(bpf.JumpEqual, icmp6EchoRequest, "source6")
	p.when(bpf.JumpEqual, icmp6EchoReply, "source6")
	p.jump("drop")
	p.label("firstudp6")
	p.udp6(offIPv6Payload + lenExtension)
	p.label("udp6")
	p.udp6(offIPv6Payload)
	p.icmp6()
}

func (p *filterProgram) udp6(offset uint32) {
	p.longer(offset + 4)
	p.load(offset, 4)
	p.when(bpf.JumpEqual, dhcp6Server<<16|dhcp6Client, "drop")
	p.jump("source6")
}

// icmp6 passes what a host sends: errors, echo, and the host's part of neighbour discovery and
// multicast. Router advertisements and redirects are dropped.
func (p *filterProgram) icmp6() {
	p.label("icmp6")
	p.longer(offIPv6Payload + 4)
	p.load(offIPv6Payload, 1)
	p.when(bpf.JumpEqual, ndNeighborSolicit, "solicit")
	p.when(bpf.JumpEqual, ndNeighborAdvert, "advert")
	for _, t := range []uint32{ndRouterSolicit, mldReport, mldDone, mld2Report} {
		p.when(bpf.JumpEqual, t, "unnumbered6")
	}
	p.when(bpf.JumpEqual, icmp6EchoRequest, "source6")
	p.when(bpf.JumpEqual, icmp6EchoReply, "source6")
	p.require(bpf.JumpGreaterOrEqual, icmp6Unreachable)
	p.require(bpf.JumpLessOrEqual, icmp6ParameterProblem)
	p.jump("source6")

	// A message without a sender says that the guest takes an address. Others that try to take
	// the same address would give it up, so it must be the guest's own.
	p.label("solicit")
	p.longer(lenND)
	p.whenBytes(offIPv6Source, net.IPv6unspecified, "takes")
	p.jump("source6")
	p.label("unnumbered6")
	p.whenBytes(offIPv6Source, net.IPv6unspecified, "pass")
	p.jump("source6")
}

// ownIPv6 passes or drops by the sender and the target of neighbour discovery. An address whose
// interface identifier is made of the card's MAC address (RFC 4291, appendix A) counts as the
// guest's own. The guest makes such addresses for each prefix that a router announces, and the
// host does not learn of them.
func (p *filterProgram) ownIPv6(own []net.IP, interfaceID []byte) {
	p.label("takes")
	p.addressIn(offNDTarget, own, interfaceID, "pass")
	p.label("advert")
	p.longer(lenND)
	p.addressIn(offNDTarget, own, interfaceID, "source6")
	p.label("source6")
	p.addressIn(offIPv6Source, own, interfaceID, "pass")
}

func (p *filterProgram) addressIn(offset uint32, own []net.IP, interfaceID []byte, label string) {
	for _, ip := range own {
		p.whenBytes(offset, ip, label)
	}
	p.whenBytes(offset+8, interfaceID, label)
	p.jump("drop")
}

// eui64 returns the interface identifier made of a MAC address.
func eui64(mac net.HardwareAddr) []byte {
	return []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}
}
