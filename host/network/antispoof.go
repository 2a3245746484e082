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

// prioAntiSpoofing is the priority of the anti-spoofing filter of a tap. It runs before the
// redirection.
const prioAntiSpoofing = 0xff48

// Spoofing says what a container may forge in the frames that it sends. It is what its
// capabilities would allow with a runtime whose containers share the host's kernel.
type Spoofing string

const (
	// SpoofNothing says that the sender must be a MAC and IP address of the container's own interfaces,
	// and messages that only a router or a DHCP server sends are dropped. A kernel enforces the
	// same for processes without CAP_NET_RAW.
	SpoofNothing Spoofing = "nothing"
	// SpoofAddresses says that the sender must be the interface's own MAC address; everything above
	// Ethernet may be forged.
	SpoofAddresses Spoofing = "addresses"
	// SpoofAll says that any frame may be sent. CAP_NET_ADMIN allows that, for bridges, VPNs and
	// forwarding.
	SpoofAll Spoofing = "all"
)

// AntiSpoof are the sender addresses that frames of one guest card may have.
type AntiSpoof struct {
	Spoofing Spoofing
	MAC      string
	// Addresses are the addresses of all interfaces of the container, in CIDR notation, because
	// a kernel sends from any of its addresses through any interface.
	Addresses []string
}

// AntiSpoofOf returns the sender addresses for frames of the interface i. all are the container's
// interfaces.
func AntiSpoofOf(i *Interface, all []Interface, spoofing Spoofing) AntiSpoof {
	s := AntiSpoof{Spoofing: spoofing, MAC: i.MAC}
	if spoofing == SpoofNothing {
		for _, other := range all {
			s.Addresses = append(s.Addresses, other.Addresses...)
		}
	}
	return s
}

func (s AntiSpoof) equal(other AntiSpoof) bool {
	return s.Spoofing == other.Spoofing && s.MAC == other.MAC && slices.Equal(s.Addresses, other.Addresses)
}

// restrict installs the anti-spoofing filter on a tap: it drops frames from the guest that have
// another sender than s allows. It replaces an earlier filter atomically.
func restrict(tap netlink.Link, s AntiSpoof) error {
	if s.Spoofing == SpoofAll {
		return unrestrict(tap)
	}
	program, err := antiSpoofProgram(s, true)
	if err != nil {
		return err
	}
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble anti-spoofing filter: %w", err)
	}
	ops := make([]byte, 0, 8*len(raw))
	for _, i := range raw {
		ops = binary.NativeEndian.AppendUint16(ops, i.Op)
		ops = append(ops, i.Jt, i.Jf)
		ops = binary.NativeEndian.AppendUint32(ops, i.K)
	}
	// The library supports only eBPF in filters of this kind, and loading eBPF needs more
	// capabilities than CAP_NET_ADMIN.
	req := antiSpoofingRequest(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_ACK, tap)
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

// unrestrict removes the anti-spoofing filter.
func unrestrict(tap netlink.Link) error {
	kind, err := ingressKind(tap)
	if err != nil || kind == "" {
		return err
	}
	_, err = antiSpoofingRequest(unix.RTM_DELTFILTER, unix.NLM_F_ACK, tap).Execute(unix.NETLINK_ROUTE, 0)
	// Some kernels return EINVAL if no filter has this priority.
	if err != nil && !isGone(err) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove anti-spoofing filter on %s: %w", tap.Attrs().Name, err)
	}
	return nil
}

// antiSpoofingRequest returns a request about the anti-spoofing filter of a tap.
func antiSpoofingRequest(message, flags int, tap netlink.Link) *nl.NetlinkRequest {
	const handle = 1
	req := nl.NewNetlinkRequest(message, flags)
	req.AddData(&nl.TcMsg{
		Family: nl.FAMILY_ALL, Ifindex: int32(tap.Attrs().Index),
		Handle: handle, Parent: netlink.HANDLE_MIN_INGRESS,
		Info: netlink.MakeHandle(prioAntiSpoofing, nl.Swap16(unix.ETH_P_ALL)),
	})
	return req
}

// maxAntiSpoofAddresses bounds the addresses of one filter, because a filter has at most 4096
// instructions.
const maxAntiSpoofAddresses = 128

// parseAddresses returns the addresses of each family, each once.
func parseAddresses(cidrs []string) (v4, v6 []net.IP, err error) {
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
	if n := len(v4) + len(v6); n > maxAntiSpoofAddresses {
		return nil, nil, fmt.Errorf("%d addresses are more than the %d that senders can be held to: give the container fewer, CAP_NET_RAW, or set anti_spoofing = \"off\"",
			n, maxAntiSpoofAddresses)
	}
	return v4, v6, nil
}
