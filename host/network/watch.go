package network

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watched are the multicast groups of what Scan and OtherFilters look at
// (rtnetlink(7)), and of those settings that have one.
const watched = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) |
	1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) |
	1<<(unix.RTNLGRP_IPV4_RULE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1) |
	1<<(unix.RTNLGRP_IPV4_NETCONF-1) | 1<<(unix.RTNLGRP_IPV6_NETCONF-1)

// watchedRules is the one of changes to nftables' rulesets.
const watchedRules = 1 << (unix.NFNLGRP_NFTABLES - 1)

// Watch tells when something of what Scan or ReadRules returns may have changed in the
// calling thread's network namespace, until ctx ends; changes from before the call not.
// Several that nobody has taken are one. Of settings the kernel tells some only
// (forwarding, rp_filter), of iptables-legacy and IPVS nothing.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	changed := make(chan struct{}, 1)
	if err := watch(ctx, unix.NETLINK_ROUTE, watched, changed); err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	err := watch(ctx, unix.NETLINK_NETFILTER, watchedRules, changed)
	if err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) { // a kernel without netfilter
		return nil, fmt.Errorf("watch packet filter: %w", err)
	}
	return changed, nil
}

func watch(ctx context.Context, protocol int, groups uint32, changed chan<- struct{}) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "netlink")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		f.Close()
		return err
	}
	context.AfterFunc(ctx, func() { f.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			// What is in a message does not matter, nor whether it was too long or,
			// ENOBUFS, one of too many.
			_, err := f.Read(buf)
			if ctx.Err() != nil {
				return
			}
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return nil
}
