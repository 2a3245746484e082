package network

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watched are the multicast groups (rtnetlink(7)) for what Scan and OtherFilters look at, and
// for those settings that have a group.
const watched = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) |
	1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) |
	1<<(unix.RTNLGRP_IPV4_RULE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1) |
	1<<(unix.RTNLGRP_IPV4_NETCONF-1) | 1<<(unix.RTNLGRP_IPV6_NETCONF-1)

// watchedRules is the multicast group for changes of nftables' rulesets.
const watchedRules = 1 << (unix.NFNLGRP_NFTABLES - 1)

// Watch returns a channel that gets a value when something that Scan or ReadRules returns may
// have changed in the calling thread's network namespace. Changes from before the call are not
// reported, and several changes that nobody has received count as one. It ends with ctx. The
// kernel reports only some settings (forwarding, rp_filter), and nothing of iptables-legacy and
// IPVS.
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
			// The content of a message is not needed. A message that is too long, or ENOBUFS
			// because there were too many, also means that something has changed.
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
