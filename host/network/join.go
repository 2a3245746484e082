package network

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Pair is an interface, and the tap whose guest card gets its configuration.
type Pair struct {
	Interface Interface
	Tap       *Tap
	AntiSpoof AntiSpoof
}

// Links records what Join has done, for Undo.
type Links struct {
	joined []joined
}

type joined struct {
	ifaceIndex int
	tapIndex   int
	sumsHeader bool // as in Tap
	// filtered is the index of the interface that has the anti-spoofing filter, if there is
	// one: the exit of the hop or, without a hop, the tap.
	filtered int
	// broughtUp: the interface was down before.
	broughtUp bool
	hears     bool // HearAnswers was called
	antiSpoof AntiSpoof
}

// Join connects each interface with its tap in both directions, and brings both up. If it fails
// it undoes what it has done. The error is ErrJoined if frames of an interface already go to
// the guest of another container.
func Join(pairs ...Pair) (*Links, error) {
	links := &Links{}
	for _, p := range pairs {
		if err := links.join(p); err != nil {
			return nil, errors.Join(fmt.Errorf("join %s to tap %s: %w", p.Interface.Name, p.Tap.Name, err), links.Undo())
		}
	}
	return links, nil
}

func (l *Links) join(p Pair) error {
	iface, err := netlink.LinkByIndex(p.Interface.Index)
	if err != nil {
		return fmt.Errorf("look up interface: %w", err)
	}
	tap, err := netlink.LinkByIndex(p.Tap.Index)
	if err != nil {
		return fmt.Errorf("look up tap: %w", err)
	}
	if iface.Attrs().Index == tap.Attrs().Index || !isOurTap(tap) {
		return fmt.Errorf("interface %s is not a tap of husk", tap.Attrs().Name)
	}
	// The first redirect fails for an interface of another container, so nothing may be done
	// before it that would have to be undone.
	if err := redirect(iface, tap.Attrs().Index); err != nil {
		return err
	}
	l.joined = append(l.joined, joined{
		ifaceIndex: iface.Attrs().Index, tapIndex: tap.Attrs().Index, sumsHeader: p.Tap.sumsHeader,
		filtered: tap.Attrs().Index, antiSpoof: p.AntiSpoof,
	})
	if err := silence(tap); err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(tap, iface.Attrs().MTU); err != nil {
		return fmt.Errorf("set MTU of tap to %d: %w", iface.Attrs().MTU, err)
	}
	if err := l.joined[len(l.joined)-1].joinOut(tap, iface); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		return fmt.Errorf("bring up tap: %w", err)
	}
	if iface.Attrs().Flags&net.FlagUp == 0 {
		// From here on the guest decides whether its card is up. If the host's interface stayed
		// down, the card could never be used.
		if err := netlink.LinkSetUp(iface); err != nil {
			return fmt.Errorf("bring up interface: %w", err)
		}
		l.joined[len(l.joined)-1].broughtUp = true
	}
	return nil
}

// needsHop says whether a filter on the tap could pass a frame in which the host's kernel
// changes the sender afterwards.
func (j *joined) needsHop(s AntiSpoof) bool {
	return s.Spoofing == SpoofNothing || (s.Spoofing == SpoofAddresses && j.sumsHeader)
}

// joinOut redirects frames of the guest to the interface, and filters them.
func (j *joined) joinOut(tap, iface netlink.Link) error {
	if !j.needsHop(j.antiSpoof) {
		if err := redirect(tap, iface.Attrs().Index); err != nil {
			return err
		}
		return restrict(tap, j.antiSpoof)
	}
	// makeHop would remove the hop of a tap that is joined already.
	if err := refuseJoined(tap); err != nil {
		return err
	}
	entry, exit, err := makeHop(tap.Attrs().Name)
	if err != nil {
		return err
	}
	j.filtered = exit.Attrs().Index
	if err := redirect(exit, iface.Attrs().Index); err != nil {
		return err
	}
	if err := restrict(exit, j.antiSpoof); err != nil {
		return err
	}
	for _, end := range []netlink.Link{exit, entry} {
		if err := netlink.LinkSetUp(end); err != nil {
			return fmt.Errorf("bring up hop: %w", err)
		}
	}
	return redirect(tap, entry.Attrs().Index)
}

// errNoHop is returned for a filter that would not see the frames as they are sent.
var errNoHop = errors.New("its frames are redirected without a hop: undo the join and join it with the new senders")

// Restrict changes the sender addresses that frames from this tap may have. The same addresses
// again cost nothing. It is an error to forbid spoofing of addresses where Join allowed it.
func (l *Links) Restrict(tap *Tap, s AntiSpoof) error {
	for i := range l.joined {
		j := &l.joined[i]
		if j.tapIndex != tap.Index || j.antiSpoof.equal(s) {
			continue
		}
		if j.needsHop(s) && j.filtered == j.tapIndex {
			return fmt.Errorf("filter senders on %s: %w", tap.Name, errNoHop)
		}
		link, err := netlink.LinkByIndex(j.filtered)
		if err != nil {
			return fmt.Errorf("look up the anti-spoofing filter of tap %s: %w", tap.Name, err)
		}
		if err := restrict(link, s); err != nil {
			return err
		}
		j.antiSpoof = s
	}
	return nil
}

// Cut takes the taps down, so that no frame leaves or reaches the guest; with false it brings
// them up again.
func (l *Links) Cut(cut bool) error {
	set := netlink.LinkSetUp
	if cut {
		set = netlink.LinkSetDown
	}
	var errs []error
	for _, j := range l.joined {
		tap, err := netlink.LinkByIndex(j.tapIndex)
		if err == nil {
			err = set(tap)
		}
		if err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("cut off tap: %w", err))
		}
	}
	return errors.Join(errs...)
}

// silence stops the host's IPv6 stack from giving the tap a link-local address. With one the
// host would send duplicate address detection, router solicitations and multicast reports to
// the guest, as if it were a host on the guest's link.
func silence(tap netlink.Link) error {
	err := netlink.LinkSetIP6AddrGenMode(tap, nl.IN6_ADDR_GEN_MODE_NONE)
	if err == nil || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // for the latter two: the kernel or the interface has no IPv6
	}
	return fmt.Errorf("keep IPv6 off the tap: %w", err)
}

// Undo undoes Join. The taps stay open. It ignores interfaces and taps that are gone, and a
// second call does nothing.
func (l *Links) Undo() error {
	var errs []error
	for i := len(l.joined) - 1; i >= 0; i-- {
		errs = append(errs, l.joined[i].undo())
	}
	l.joined = nil
	return errors.Join(errs...)
}

func (j joined) undo() error {
	var errs []error
	tap, err := netlink.LinkByIndex(j.tapIndex)
	if err == nil {
		errs = append(errs, netlink.LinkSetDown(tap))
	}
	if j.filtered != j.tapIndex {
		if exit, err := netlink.LinkByIndex(j.filtered); err == nil {
			errs = append(errs, removeHop(exit))
		} else if !isGone(err) {
			errs = append(errs, fmt.Errorf("look up hop: %w", err))
		}
	}
	switch {
	case err == nil:
		if j.filtered == j.tapIndex {
			errs = append(errs, unrestrict(tap))
		}
		errs = append(errs, removeRedirects(tap, map[int]bool{j.ifaceIndex: true}))
	case !isGone(err):
		errs = append(errs, fmt.Errorf("look up tap: %w", err))
	}
	iface, err := netlink.LinkByIndex(j.ifaceIndex)
	switch {
	case err == nil:
		// The interface goes down first, so that the host's stack receives no frame that it did
		// not receive before Join.
		if j.broughtUp {
			errs = append(errs, netlink.LinkSetDown(iface))
		}
		errs = append(errs, removeRedirects(iface, map[int]bool{j.tapIndex: true}))
	case !isGone(err):
		errs = append(errs, fmt.Errorf("look up interface: %w", err))
	}
	return errors.Join(errs...)
}
