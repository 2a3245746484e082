package network

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// These filters run before the redirection. Each protocol has a priority of its own.
const (
	prioAnswers = 0xff50
	prioARP     = 0xff51
)

// The local ports of sockets in the namespace after ReservePorts: 61440 to 65535. A filter can
// test that range by four bits, and it is above the ports that a guest uses by default (32768
// to 60999).
const (
	portRange  = "61440\t65535" // in the kernel's format
	portSysctl = "ipv4/ip_local_port_range"
	portBits   = 0xf000
)

// ReservePorts changes the local ports for sockets that engines open in the namespace, so that
// they differ from the guest's and HearAnswers can tell whose an answer is. It returns the
// former range, or "" if it was the same. dir is as in ReadSysctls.
func ReservePorts(dir *os.File) (before string, err error) {
	before, err = readSysctl(int(dir.Fd()), portSysctl, make([]byte, maxSysctl))
	if err != nil {
		return "", fmt.Errorf("reserve ports for the engine's resolver: %w", err)
	}
	if before == portRange {
		return "", nil
	}
	fd, err := unix.Openat(int(dir.Fd()), portSysctl, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("reserve ports for the engine's resolver: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(portRange)); err != nil {
		return "", fmt.Errorf("reserve ports for the engine's resolver: %w", err)
	}
	return before, nil
}

// AreReserved says whether the range of local ports is that of ReservePorts.
func AreReserved(s Sysctls) bool { return s[portSysctl] == portRange }

// SetPorts sets the range of local ports in s. If ports is empty, the setting is removed.
func (s Sysctls) SetPorts(ports string) {
	delete(s, portSysctl)
	if ports != "" {
		s[portSysctl] = ports
	}
}

// HearAnswers makes the host's network stack receive what an engine's resolver needs that asks
// other servers from inside the namespace: answers of name servers to its own sockets, and
// answers to its ARP requests. The guest still receives the ARP answers too. A second call does
// nothing.
func (l *Links) HearAnswers() error {
	for i := range l.joined {
		j := &l.joined[i]
		if j.hears {
			continue
		}
		if err := hearAnswers(j.ifaceIndex, j.tapIndex); err != nil && !isGone(err) {
			return fmt.Errorf("let the engine's resolver hear answers: %w", err)
		}
		j.hears = true
	}
	return nil
}

func hearAnswers(iface, tap int) error {
	for _, f := range []struct {
		prio, protocol uint16
		keys           []nl.TcU32Key
		actions        []netlink.Action
	}{
		{prioAnswers, unix.ETH_P_IP, answersTo(unix.IPPROTO_UDP), nil},
		{prioAnswers, unix.ETH_P_IP, answersTo(unix.IPPROTO_TCP), nil},
		{prioARP, unix.ETH_P_ARP, []nl.TcU32Key{key(4, 2, 0xffff)}, []netlink.Action{&netlink.MirredAction{
			ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_PIPE},
			MirredAction: netlink.TCA_EGRESS_MIRROR,
			Ifindex:      tap,
		}}},
	} {
		err := netlink.FilterAdd(&netlink.U32{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: iface, Parent: netlink.HANDLE_MIN_INGRESS, Priority: f.prio, Protocol: f.protocol,
			},
			// A filter without an action lets matching packets pass to the stack.
			Sel:     &nl.TcU32Sel{Flags: nl.TC_U32_TERMINAL, Nkeys: uint8(len(f.keys)), Keys: f.keys},
			Actions: f.actions,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// answersTo returns keys that match IPv4 packets without options, which are no fragments, from
// port 53 to a reserved port.
func answersTo(protocol uint32) []nl.TcU32Key {
	return []nl.TcU32Key{
		key(0, 5<<24, 0xf<<24),
		key(4, 0, 0x1fff),
		key(8, protocol<<16, 0xff<<16),
		key(20, 53<<16|portBits, 0xffff<<16|portBits),
	}
}

// key returns a key that compares 4 bytes at an offset from the network header.
func key(offset int32, value, mask uint32) nl.TcU32Key {
	return nl.TcU32Key{Off: offset, Val: value, Mask: mask}
}

// removeAnswers removes the filters of HearAnswers.
func removeAnswers(link netlink.Link, filters []netlink.Filter) error {
	var errs []error
	done := map[uint16]bool{}
	for _, f := range filters {
		a := f.Attrs()
		if (a.Priority != prioAnswers && a.Priority != prioARP) || done[a.Priority] {
			continue
		}
		done[a.Priority] = true
		err := netlink.FilterDel(&netlink.GenericFilter{
			FilterType: "u32",
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: a.Priority, Protocol: a.Protocol,
			},
		})
		if err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("remove filter of %s: %w", link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}
