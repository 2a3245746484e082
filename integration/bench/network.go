package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	netMiB    = 8 // as in testprog
	netRounds = 100

	hostCIDR      = "10.111.0.1/24"
	containerCIDR = "10.111.0.2/24"
	peerAddress   = "10.111.0.1:5001"
)

// network measures TCP between a container and the host's end of its veth, and between a bare
// guest and the host's end of its tap.
func (b *bench) network() error {
	for _, r := range b.runtimes {
		said, err := b.throughVeth(r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		if err := b.rates("network: ", r.name, said); err != nil {
			return err
		}
	}
	vm, err := b.huskVM()
	if err != nil {
		return err
	}
	said, err := b.throughTap(vm)
	if err != nil {
		return fmt.Errorf("%s: %w", floorName, err)
	}
	return b.rates("network: ", floorName, said)
}

func (b *bench) throughVeth(r *oci) (said string, err error) {
	host, err := b.newNetNS("host-" + r.name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, host.remove()) }()
	inner, err := b.newNetNS("inner-" + r.name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, inner.remove()) }()
	if err := wire(host, inner); err != nil {
		return "", err
	}
	bundle := b.bundle("network-" + r.name)
	if err := b.makeBundle(bundle, filepath.Join(b.dir, "rootfs"), b.netWork()); err != nil {
		return "", err
	}
	if err := editSpec(bundle, func(s *specs.Spec) {
		for i := range s.Linux.Namespaces {
			if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
				s.Linux.Namespaces[i].Path = string(inner)
			}
		}
	}); err != nil {
		return "", err
	}
	return said, b.withPeer(host, func() (err error) {
		said, err = b.text(r, bundle)
		return err
	})
}

func (b *bench) throughTap(vm *vmArgs) (said string, err error) {
	host, err := b.newNetNS("tap")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, host.remove()) }()
	var tap *os.File
	err = host.do(func() error {
		var err error
		if tap, err = openTapHere(); err != nil {
			return err
		}
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Type() == "tuntap" {
				return setUp(l, hostCIDR)
			}
		}
		return errors.New("the tap is not there")
	})
	if err != nil {
		return "", err
	}
	g, err := b.bareGuest(vm, b.dir, husksExport, tap)
	_ = tap.Close()
	if err != nil {
		return "", err
	}
	defer g.stop()
	if err := g.command(io.Discard, "address", "eth0", containerCIDR); err != nil {
		return "", err
	}
	return said, b.withPeer(host, func() (err error) {
		said, err = g.text(b.netWork()[1:]...)
		return err
	})
}

func (b *bench) netWork() []string {
	return []string{"testprog", "network", peerAddress, strconv.Itoa(b.samples)}
}

// withPeer runs f while a server in ns answers testprog's network command.
func (b *bench) withPeer(ns netNS, f func() error) error {
	var l net.Listener
	err := ns.do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", peerAddress)
		return err
	})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- b.peer(l) }()
	err = f()
	_ = l.Close()
	return errors.Join(err, <-done)
}

// peer accepts one connection, checks what comes and sends it back.
func (b *bench) peer(l net.Listener) error {
	c, err := l.Accept()
	if err != nil {
		return fmt.Errorf("nobody came: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	want, got := block(3), make([]byte, mib)
	for range b.samples {
		for range netMiB {
			if _, err := io.ReadFull(c, got); err != nil {
				return fmt.Errorf("peer: %w", err)
			}
			if !bytes.Equal(got, want) {
				return errors.New("peer: not what was sent")
			}
		}
		if _, err := c.Write(want[:1]); err != nil {
			return err
		}
		for range netMiB {
			if _, err := c.Write(want); err != nil {
				return err
			}
		}
		for range netRounds {
			if _, err := io.ReadFull(c, got[:1]); err != nil {
				return fmt.Errorf("peer: %w", err)
			}
			if _, err := c.Write(got[:1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// netNS is the path of a network namespace.
type netNS string

func (b *bench) newNetNS(name string) (netNS, error) {
	path := filepath.Join(b.dir, "netns-"+name)
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return "", err
	}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	})
	return netNS(path), err
}

func (n netNS) remove() error { return unix.Unmount(string(n), unix.MNT_DETACH) }

// do runs f on a thread in the namespace. Sockets that f opens stay there.
func (n netNS) do(f func() error) error {
	return onThread(func() error {
		handle, err := netns.GetFromPath(string(n))
		if err != nil {
			return err
		}
		defer handle.Close()
		if err := netns.Set(handle); err != nil {
			return err
		}
		return f()
	})
}

// onThread runs f on a new thread, which ends afterwards.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// wire connects two namespaces by a veth pair. Its inner end is eth0.
func wire(host, inner netNS) error {
	err := host.do(func() error {
		target, err := netns.GetFromPath(string(inner))
		if err != nil {
			return err
		}
		defer target.Close()
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(target))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return setUp(veth, hostCIDR)
	})
	if err != nil {
		return err
	}
	return inner.do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return setUp(eth0, containerCIDR)
	})
}

func setUp(l netlink.Link, cidr string) error {
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}
