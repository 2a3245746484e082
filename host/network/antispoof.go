package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// prioSources is the priority of the filter on a tap that drops forged frames. It
// runs before the redirection.
const prioSources = 0xff48

// Forging is what a container may put into the frames it sends, as its
// capabilities allow it with a runtime whose containers share the host's kernel.
type Forging string

const (
	// ForgeNothing is only the MAC and IP addresses of its own interfaces as sender, and
	// no message that only a router or a DHCP server sends. It is what a kernel does
	// for processes without CAP_NET_RAW.
	ForgeNothing Forging = "nothing"
	// ForgeAddresses is only its own MAC as sender, whatever is above Ethernet.
	ForgeAddresses Forging = "addresses"
	// ForgeAll is any frame. It is what CAP_NET_ADMIN allows: bridges, VPNs, forwarding.
	ForgeAll Forging = "all"
)

// Sources are the senders that the frames of one guest card may have.
type Sources struct {
	Forging Forging
	MAC     string
	// Addresses are those of all of the container's interfaces, as CIDR: a kernel
	// sends from any of its addresses through any interface.
	Addresses []string
}

// SourcesOf returns what the frames of i may come from, which is one of the
// interfaces that a container has.
func SourcesOf(i *Interface, all []Interface, forging Forging) Sources {
	s := Sources{Forging: forging, MAC: i.MAC}
	if forging == ForgeNothing {
		for _, other := range all {
			s.Addresses = append(s.Addresses, other.Addresses...)
		}
	}
	return s
}

func (s Sources) equal(other Sources) bool {
	return s.Forging == other.Forging && s.MAC == other.MAC && slices.Equal(s.Addresses, other.Addresses)
}

// restrict drops what arrives from the guest on its tap and has another sender. It
// replaces an earlier restriction in one step.
func restrict(tap netlink.Link, s Sources) error {
	if s.Forging == ForgeAll {
		return unrestrict(tap)
	}
	program, err := sourceFilter(s, true)
	if err != nil {
		return err
	}
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble filter of senders: %w", err)
	}
	ops := make([]byte, 0, 8*len(raw))
	for _, i := range raw {
		ops = binary.NativeEndian.AppendUint16(ops, i.Op)
		ops = append(ops, i.Jt, i.Jf)
		ops = binary.NativeEndian.AppendUint32(ops, i.K)
	}
	// The library's own filter of this kind takes eBPF only, whose system call needs
	// more than CAP_NET_ADMIN.
	req := sourcesRequest(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_ACK, tap)
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_BPF_OPS_LEN, nl.Uint16Attr(uint16(len(raw))))
	options.AddRtAttr(nl.TCA_BPF_OPS, ops)
	options.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(nl.TCA_BPF_FLAG_ACT_DIRECT))
	req.AddData(options)
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("filter senders on %s: the kernel needs CONFIG_NET_CLS_BPF (module cls_bpf), or the setting anti_spoofing = \"off\": %w", tap.Attrs().Name, err)
	}
	if err != nil {
		return fmt.Errorf("filter senders on %s: %w", tap.Attrs().Name, err)
	}
	return nil
}

// unrestrict is the undo of restrict.
func unrestrict(tap netlink.Link) error {
	kind, err := ingressKind(tap)
	if err != nil || kind == "" {
		return err
	}
	_, err = sourcesRequest(unix.RTM_DELTFILTER, unix.NLM_F_ACK, tap).Execute(unix.NETLINK_ROUTE, 0)
	// EINVAL is some kernels' answer where no filter has that priority.
	if err != nil && !isGone(err) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove filter of senders on %s: %w", tap.Attrs().Name, err)
	}
	return nil
}

// sourcesRequest names the one filter of senders that a tap has.
func sourcesRequest(message, flags int, tap netlink.Link) *nl.NetlinkRequest {
	const handle = 1
	req := nl.NewNetlinkRequest(message, flags)
	req.AddData(&nl.TcMsg{
		Family: nl.FAMILY_ALL, Ifindex: int32(tap.Attrs().Index),
		Handle: handle, Parent: netlink.HANDLE_MIN_INGRESS,
		Info: netlink.MakeHandle(prioSources, nl.Swap16(unix.ETH_P_ALL)),
	})
	return req
}

// maxSourceAddresses bounds what one filter can compare, which has 4096 instructions.
const maxSourceAddresses = 128

// parseSources returns the addresses of each family without repetition.
func parseSources(cidrs []string) (v4, v6 []net.IP, err error) {
	seen := map[string]bool{}
	for _, cidr := range cidrs {
		ip, _, err := net.ParseCIDR(cidr)
		if err != nil {
			return nil, nil, err
		}
		if seen[ip.String()] {
			continue
		}
		seen[ip.String()] = true
		if four := ip.To4(); four != nil {
			v4 = append(v4, four)
		} else {
			v6 = append(v6, ip.To16())
		}
	}
	if n := len(v4) + len(v6); n > maxSourceAddresses {
		return nil, nil, fmt.Errorf("%d addresses are more than the %d that senders can be held to: give the container fewer, CAP_NET_RAW, or set anti_spoofing = \"off\"",
			n, maxSourceAddresses)
	}
	return v4, v6, nil
}
