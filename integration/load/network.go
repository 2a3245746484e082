package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// network is a network namespace with a name in the file system, as engines make
// them, with one interface; and a bundle of a container in it.
type network struct{ path, bundle string }

// makeNetworks makes one for each that works at the same time.
func (l *load) makeNetworks() (all []*network, err error) {
	for i := range l.parallel {
		n := &network{path: filepath.Join(l.dir, fmt.Sprintf("net%d", i)), bundle: filepath.Join(l.dir, fmt.Sprintf("bundle%d", i))}
		if err := os.WriteFile(n.path, nil, 0o600); err != nil {
			return nil, err
		}
		if err := inThread(func() error { return makeNamespace(n.path) }); err != nil {
			return nil, fmt.Errorf("make network namespace: %w", err)
		}
		if err := os.Mkdir(n.bundle, 0o755); err != nil {
			return nil, err
		}
		if err := writeSpec(n.bundle, filepath.Join(l.bundle, "rootfs"), n); err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

func makeNamespace(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
}

// leftIn counts taps, and the queueing disciplines that redirect to them.
func leftIn(nets []*network) (left int64, err error) {
	for _, n := range nets {
		err := inThread(func() error {
			ns, err := netns.GetFromPath(n.path)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return err
			}
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, link := range links {
				if link.Type() == "tuntap" {
					left++
				}
				qdiscs, err := netlink.QdiscList(link)
				if err != nil {
					return err
				}
				for _, q := range qdiscs {
					if q.Type() == "ingress" || q.Type() == "clsact" {
						left++
					}
				}
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("look into a network namespace: %w", err)
		}
	}
	return left, nil
}

// inThread runs f on a thread that ends with it, in whatever namespace it is.
func inThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
