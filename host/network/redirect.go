package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The priorities mark filters as husk's, and say whether husk has made the ingress qdisc that
// they are in: Leave knows nothing else, and must not remove anything of others. They are near
// the highest number, so that filters that others put on the interface, or add without a
// priority (0xc000 and less), run before the redirection and stay effective.
const (
	prioQdiscOurs  = 0xff55
	prioQdiscFound = 0xff56
)

// ErrJoined is returned by Join for an interface whose frames go to the guest of another
// container in the same network namespace.
var ErrJoined = errors.New("already joined to another container's virtual machine")

// ingressHandle is ffff:, the only handle that an ingress or clsact qdisc can have.
var ingressHandle = netlink.MakeHandle(0xffff, 0)

// redirect makes every frame that arrives on link from leave through the interface with index
// to. The host's stack does not see it.
func redirect(from netlink.Link, to int) (err error) {
	if err := refuseJoined(from); err != nil {
		return err
	}
	made, err := ensureIngress(from)
	if err != nil {
		return err
	}
	prio := uint16(prioQdiscFound)
	if made {
		prio = prioQdiscOurs
		defer func() {
			if err != nil {
				err = errors.Join(err, delIngress(from))
			}
		}()
	}
	return addFilter(from, to, prio)
}

// refuseJoined returns ErrJoined if frames that arrive on the link are redirected. It removes a
// redirection to an interface that no longer exists.
func refuseJoined(link netlink.Link) error {
	if err := removeRedirects(link, nil); err != nil {
		return err
	}
	live, err := redirects(link)
	if err == nil && len(live) > 0 {
		err = fmt.Errorf("redirect %s: %w", link.Attrs().Name, ErrJoined)
	}
	return err
}

// addFilter tries the classifiers that can match every frame one after the other. Kernels
// differ in which they have, and return ENOENT for one that is missing.
func addFilter(from netlink.Link, to int, prio uint16) error {
	attrs := netlink.FilterAttrs{
		LinkIndex: from.Attrs().Index,
		Parent:    netlink.HANDLE_MIN_INGRESS,
		Priority:  prio,
		Protocol:  unix.ETH_P_ALL,
	}
	mirred := []netlink.Action{netlink.NewMirredAction(to)}
	// The filter has no keys. A key compares four bytes of payload, even with an empty mask, so
	// shorter frames would pass to the host's stack.
	err := netlink.FilterAdd(&netlink.U32{
		FilterAttrs: attrs,
		Sel:         &nl.TcU32Sel{Flags: nl.TC_U32_TERMINAL},
		Actions:     mirred,
	})
	if err == nil {
		return nil
	}
	u32Err := err
	if err = netlink.FilterAdd(&netlink.MatchAll{FilterAttrs: attrs, Actions: mirred}); err == nil {
		return nil
	}
	name := from.Attrs().Name
	if errors.Is(u32Err, unix.ENOENT) && errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("redirect %s: the kernel has no suitable tc filter: needs CONFIG_NET_ACT_MIRRED and either "+
			"CONFIG_NET_CLS_U32 or CONFIG_NET_CLS_MATCHALL (modules act_mirred, cls_u32, cls_matchall): %w", name, u32Err)
	}
	return fmt.Errorf("redirect %s: add filter u32: %w; matchall: %w", name, u32Err, err)
}

// ensureIngress adds the qdisc for filters on arriving frames, and says whether it has made
// one. If there is an ingress or clsact qdisc, that is used, and the filters in it run before
// husk's.
func ensureIngress(link netlink.Link) (made bool, err error) {
	kind, err := ingressKind(link)
	if err != nil || kind != "" {
		return false, err
	}
	err = netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index,
		Handle:    ingressHandle,
		Parent:    netlink.HANDLE_INGRESS,
	}})
	if errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("add ingress qdisc to %s: the kernel needs CONFIG_NET_SCH_INGRESS (module sch_ingress): %w",
			link.Attrs().Name, err)
	}
	if err != nil {
		return false, fmt.Errorf("add ingress qdisc to %s: %w", link.Attrs().Name, err)
	}
	return true, nil
}

// ingressKind returns "ingress" or "clsact", or "" if the link has neither.
func ingressKind(link netlink.Link) (string, error) {
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(link) })
	if err != nil {
		return "", fmt.Errorf("list qdiscs of %s: %w", link.Attrs().Name, err)
	}
	for _, q := range qdiscs {
		if q.Attrs().Parent == netlink.HANDLE_INGRESS {
			return q.Type(), nil
		}
	}
	return "", nil
}

func delIngress(link netlink.Link) error {
	err := netlink.QdiscDel(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index,
		Handle:    ingressHandle,
		Parent:    netlink.HANDLE_INGRESS,
	}})
	if err != nil && !isGone(err) {
		return fmt.Errorf("remove ingress qdisc of %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// redirection is one filter of husk's.
type redirection struct {
	kind string // of the filter
	prio uint16
	to   int // interface index; 0 if that interface no longer exists
}

// redirects returns husk's filters for frames that arrive on link.
func redirects(link netlink.Link) ([]redirection, error) {
	kind, err := ingressKind(link)
	if err != nil || kind == "" {
		return nil, err
	}
	filters, err := listIngressFilters(link)
	if err != nil {
		return nil, err
	}
	var out []redirection
	for _, f := range filters {
		prio := f.Attrs().Priority
		if prio != prioQdiscOurs && prio != prioQdiscFound {
			continue
		}
		var actions []netlink.Action
		switch f := f.(type) {
		case *netlink.U32:
			actions = f.Actions
		case *netlink.MatchAll:
			actions = f.Actions
		}
		for _, a := range actions {
			if m, ok := a.(*netlink.MirredAction); ok {
				out = append(out, redirection{f.Type(), prio, m.Ifindex})
			}
		}
	}
	return out, nil
}

func listIngressFilters(link netlink.Link) ([]netlink.Filter, error) {
	filters, err := dump(func() ([]netlink.Filter, error) {
		return netlink.FilterList(link, netlink.HANDLE_MIN_INGRESS)
	})
	if err != nil {
		return nil, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
	}
	return filters, nil
}

// removeRedirects removes husk's filters on link whose target no longer exists or is in
// targets, and then the qdisc if husk has made it and nothing else uses it. It is no error if
// they are gone.
func removeRedirects(link netlink.Link, targets map[int]bool) error {
	list, err := redirects(link)
	if err != nil {
		return err
	}
	for _, r := range list {
		if !targets[r.to] {
			dead, err := isDead(r.to)
			if err != nil {
				return err
			}
			if !dead {
				continue
			}
		}
		if err := removeRedirect(link, r); err != nil {
			return err
		}
	}
	return nil
}

func isDead(index int) (bool, error) {
	if index == 0 {
		return true, nil
	}
	_, err := netlink.LinkByIndex(index)
	if isGone(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up interface %d: %w", index, err)
	}
	return false, nil
}

func removeRedirect(link netlink.Link, r redirection) error {
	err := netlink.FilterDel(&netlink.GenericFilter{
		FilterType: r.kind,
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index,
			Parent:    netlink.HANDLE_MIN_INGRESS,
			Priority:  r.prio,
			Protocol:  unix.ETH_P_ALL,
		},
	})
	if err != nil && !isGone(err) {
		return fmt.Errorf("remove redirection of %s: %w", link.Attrs().Name, err)
	}
	rest, err := listIngressFilters(link)
	if err == nil {
		if err := removeAnswers(link, rest); err != nil {
			return err
		}
		rest, err = listIngressFilters(link)
	}
	if r.prio != prioQdiscOurs {
		return nil
	}
	if isGone(err) || (err == nil && len(rest) > 0) {
		return nil // the qdisc is gone or has filters of others
	}
	if err != nil {
		return err
	}
	return delIngress(link)
}

// isGone says whether err means that an interface, a qdisc or a filter does not exist.
func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
}
