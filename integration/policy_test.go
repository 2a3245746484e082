//go:build integration

package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// run runs a program of the host in the namespace.
func (n *netNS) run(stdin string, command ...string) {
	n.t.Helper()
	if _, err := exec.LookPath(command[0]); err != nil {
		n.t.Skip(err)
	}
	n.do(func() error {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", cmd, err, out)
		}
		return nil
	})
}

// reaches says whether the container gets an answer from a port in outer.
func reaches(t *testing.T, c *container, address string) bool {
	t.Helper()
	return c.exec("testprog", "tcp", "send", address, "0").code == 0
}

func listenAt(t *testing.T, outer *netNS, addresses ...string) {
	t.Helper()
	for _, address := range addresses {
		outer.do(func() error {
			l, err := net.Listen("tcp", address)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
	}
}

// TestPacketFilterOfTheNamespace: the host's packet filter in the network namespace is
// effective before start and when it is changed while the container runs.
func TestPacketFilterOfTheNamespace(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, changed [][]string
		stdin           string
	}{
		"nftables": {
			before: [][]string{{"nft", "-f", "-"}},
			stdin: `table inet t {
				set closed { type inet_service; elements = { 7101 }; }
				chain out { type filter hook output priority 0; policy accept; ip daddr 10.99.0.1 tcp dport @closed reject with tcp reset; }
			}`,
			changed: [][]string{
				{"nft", "add", "element", "inet", "t", "closed", "{ 7102 }"}, {"nft", "delete", "element", "inet", "t", "closed", "{ 7101 }"},
			},
		},
		"iptables": {
			before: [][]string{{"iptables-nft", "-A", "OUTPUT", "-p", "tcp", "-m", "multiport", "--dports", "7101", "-j", "REJECT"}},
			changed: [][]string{
				{"iptables-nft", "-F", "OUTPUT"},
				{"iptables-nft", "-A", "OUTPUT", "-p", "tcp", "-m", "tcp", "--dport", "7102", "-j", "REJECT"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			outer, inner := e.netNS(), e.netNS()
			defer outer.remove()
			defer inner.remove()
			wire(t, outer, inner, 1500)
			listenAt(t, outer, "10.99.0.1:7101", "10.99.0.1:7102")
			for _, command := range c.before {
				inner.run(c.stdin, command...)
			}
			box := e.createStarted(e.bundle(withArgs("sleep", "1000"), withNetNS(inner.path)))
			if reaches(t, box, "10.99.0.1:7101") || !reaches(t, box, "10.99.0.1:7102") {
				t.Error("the filter does not hold at start")
			}
			for _, command := range c.changed {
				inner.run("", command...)
			}
			if !reaches(t, box, "10.99.0.1:7101") || reaches(t, box, "10.99.0.1:7102") {
				t.Error("the filter does not hold when it has changed")
			}
			box.stop()
		})
	}
}

func TestSysctlsOfTheNamespace(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	outer, inner := e.netNS(), e.netNS()
	defer outer.remove()
	defer inner.remove()
	wire(t, outer, inner, 1500)
	for _, s := range []string{
		// Docker does this if only one of the networks has IPv6.
		"ipv6/conf/all/disable_ipv6 1", "ipv6/conf/eth0/disable_ipv6 0",
		"ipv4/tcp_keepalive_time 77", "ipv4/tcp_fin_timeout 33", "ipv4/conf/all/rp_filter 2", "ipv4/conf/eth0/arp_ignore 1",
		"ipv6/conf/eth0/accept_ra 0", "ipv4/ip_local_port_range 40000 41000",
	} {
		name, value, _ := strings.Cut(s, " ")
		inner.run("", "sh", "-c", fmt.Sprintf("echo %s > /proc/sys/net/%s", value, name))
	}
	inner.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr(t, "fd99::2/64")) // the address has gone
	})
	read := []string{"sh", "-c", "cd /proc/sys/net && cat ipv4/tcp_keepalive_time ipv4/tcp_fin_timeout ipv4/conf/all/rp_filter ipv4/conf/eth0/arp_ignore ipv6/conf/eth0/accept_ra ipv4/ip_local_port_range ipv4/ip_default_ttl"}
	box := e.createStarted(e.bundle(withArgs("sleep", "1000"), withNetNS(inner.path), func(s *specs.Spec) {
		s.Linux.Sysctl = map[string]string{"net.ipv4.tcp_fin_timeout": "44"}
	}))
	if got, want := box.exec(read...).is(0).stdout, "77\n44\n2\n1\n0\n40000\t41000\n64\n"; got != want {
		t.Errorf("settings %q, want %q", got, want)
	}
	for range 2 {
		box.exec("ping", "-c", "1", "-W", "5", "fd99::1").is(0)
		box.exec("sh", "-c", "test $(cat /proc/sys/net/ipv6/conf/lo/disable_ipv6) = 1").is(0)
		// Again, when the guest has the first one.
		inner.do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.AddrReplace(link, addr(t, "fd99::7/64"))
		})
	}
	// One setting that the kernel reports, together with one that it does not.
	inner.run("", "sh", "-c", "cd /proc/sys/net/ipv4; echo 60 > tcp_keepalive_time; echo 0 > conf/all/rp_filter; echo 1 > conf/all/rp_filter")
	eventually(t, "changed settings reach the container", testTimeout, func() bool {
		return strings.HasPrefix(box.exec(read...).is(0).stdout, "60\n44\n1\n1\n")
	})
	box.stop()
}

// uncarriable are filters that no guest can have.
var uncarriable = map[string]struct {
	put  func(n *netNS)
	text string
}{
	"iptables-legacy": {
		func(n *netNS) { n.run("", "iptables-legacy", "-A", "OUTPUT", "-d", "10.99.0.9", "-j", "DROP") },
		"table filter of iptables-legacy has rules",
	},
	"policy of iptables-legacy": {
		func(n *netNS) { n.run("", "ip6tables-legacy", "-t", "mangle", "-P", "FORWARD", "DROP") },
		"table mangle of ip6tables-legacy has rules",
	},
	"interface by number": {
		func(n *netNS) {
			n.run("table ip t { chain c { type filter hook input priority 0; iif eth0 drop; }; }", "nft", "-f", "-")
		},
		"rule of chain ip t c (meta, cmp, immediate): it names an interface by its number",
	},
	"program of the host": {
		func(n *netNS) { n.run("", "iptables-nft", "-A", "OUTPUT", "-j", "NFQUEUE", "--queue-num", "3") },
		"a program of the host decides",
	},
	"IPsec": {
		func(n *netNS) {
			n.run("", "ip", "xfrm", "policy", "add", "dir", "out", "dst", "10.99.0.1/32", "tmpl", "proto", "esp", "mode", "transport")
		},
		"1 IPsec policies",
	},
	"route": {
		func(n *netNS) { n.run("", "ip", "route", "add", "prohibit", "10.55.0.0/16") },
		"route prohibit 10.55.0.0/16",
	},
}

func TestFilterThatCannotBeCarried(t *testing.T) {
	needVM(t)
	t.Parallel()
	for name, c := range uncarriable {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			outer, inner := e.netNS(), e.netNS()
			defer outer.remove()
			defer inner.remove()
			wire(t, outer, inner, 1500)
			c.put(inner)
			box := e.create(e.bundle(withNetNS(inner.path)))
			r := e.do("start", box.id).is(1)
			if !strings.Contains(r.stderr, c.text) || !strings.Contains(r.stderr, "uncarried_filters") {
				t.Errorf("start: %q, want %q and what to do", r.stderr, c.text)
			}
			r.oneLogLine(strings.TrimSpace(r.stderr))
			// A start that is tried again watches the network once.
			watching := netlinkSockets(t, box.pid)
			e.do("start", box.id).is(1)
			if now := netlinkSockets(t, box.pid); watching == 0 || now != watching {
				t.Errorf("the supervisor has %d netlink sockets after a refused start, %d after another", watching, now)
			}
			e.ok("delete", "--force", box.id)
			inner.do(func() error { return sameAsBefore("eth0") })
		})
	}
	t.Run("accepted", func(t *testing.T) {
		t.Parallel()
		e := newEnv(t)
		e.withSettings("uncarried_filters = \"accept\"")
		outer, inner := e.netNS(), e.netNS()
		defer outer.remove()
		defer inner.remove()
		wire(t, outer, inner, 1500)
		for _, c := range uncarriable {
			c.put(inner)
		}
		box := e.createStarted(e.bundle(withArgs("sleep", "1000"), withNetNS(inner.path)))
		box.exec("ping", "-c", "1", "-W", "5", "10.99.0.1").is(0)
		box.stop()
	})
}

// netlinkSockets counts those that a process has open.
func netlinkSockets(t *testing.T, pid int) int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	inodes := map[string]bool{}
	for line := range strings.Lines(readFile(t, dir+"net/netlink")) {
		if fields := strings.Fields(line); len(fields) > 0 {
			inodes["socket:["+fields[len(fields)-1]+"]"] = true
		}
	}
	fds, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, fd := range fds {
		if link, _ := os.Readlink(dir + "fd/" + fd.Name()); inodes[link] {
			count++
		}
	}
	return count
}

// TestFilterThatCannotBeCarriedLater: while such a filter exists in a running container's
// namespace, the container has no network.
func TestFilterThatCannotBeCarriedLater(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	outer, inner := e.netNS(), e.netNS()
	defer outer.remove()
	defer inner.remove()
	wire(t, outer, inner, 1500)
	box := e.createStarted(e.bundle(withArgs("sleep", "1000"), withNetNS(inner.path)))
	ping := func(count string) int { return box.exec("ping", "-c", count, "-W", "1", "10.99.0.1").code }
	if ping("1") != 0 {
		t.Fatal("no network at first")
	}
	inner.run("table ip t { chain c { type filter hook output priority 0; oif eth0 drop; }; }", "nft", "-f", "-")
	if ping("1") == 0 {
		t.Error("the container sends past the filter")
	}
	if got := e.do("state", box.id).is(0).stdout; !strings.Contains(got, "the container is cut off its network") || !strings.Contains(got, "names an interface by its number") {
		t.Errorf("state tells nothing of it: %s", got)
	}
	inner.run("", "nft", "delete", "table", "ip", "t")
	if ping("10") != 0 {
		t.Error("the filter has gone, and the network not come back")
	}
	if got := e.do("state", box.id).is(0).stdout; strings.Contains(got, "network_problem") {
		t.Errorf("state still tells of it: %s", got)
	}
	box.stop()
}

// TestResolverRulesAreNoFilter: Docker's rules for its resolver do not count, because the agent
// stands in for the resolver.
func TestResolverRulesAreNoFilter(t *testing.T) {
	needVM(t)
	t.Parallel()
	for _, tool := range []string{"iptables-legacy", "iptables-nft", "nft"} {
		t.Run(tool, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			inner := e.netNS()
			defer inner.remove()
			if tool == "nft" {
				inner.run(`table ip docker-dns {
					chain dns-dnat { type nat hook output priority -100; ip daddr 127.0.0.11 udp dport 53 counter dnat to 127.0.0.11:40001; }
					chain dns-snat { type nat hook postrouting priority srcnat; ip saddr 127.0.0.11 udp sport 40001 counter snat to :53; }
				}`, "nft", "-f", "-")
			} else {
				for _, rule := range []string{
					"-N DOCKER_OUTPUT", "-I OUTPUT -d 127.0.0.11 -j DOCKER_OUTPUT", "-N DOCKER_POSTROUTING", "-I POSTROUTING -d 127.0.0.11 -j DOCKER_POSTROUTING",
					"-I DOCKER_OUTPUT -d 127.0.0.11 -p udp --dport 53 -j DNAT --to-destination 127.0.0.11:40001",
					"-I DOCKER_POSTROUTING -s 127.0.0.11 -p udp --sport 40001 -j SNAT --to-source :53",
				} {
					inner.run("", append([]string{tool, "-t", "nat"}, strings.Fields(rule)...)...)
				}
			}
			// The container may change its own tables, and no rule is in them.
			out := e.ok("run", "--bundle", e.bundle(withNetNS(inner.path), withScript("cat /proc/net/ip_tables_names /proc/modules 2>/dev/null | grep -E '^(nat|nf_tables) '; echo done")), e.id())
			if out != "done\n" {
				t.Errorf("the guest has something of them: %q", out)
			}
		})
	}
}

// TestNetworkConnectedBeyondCards: if an interface is connected for which the guest has no
// card, operators can read that.
func TestNetworkConnectedBeyondCards(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	outer, inner := e.netNS(), e.netNS()
	defer outer.remove()
	defer inner.remove()
	wire(t, outer, inner, 1500)
	box := e.createStarted(e.bundle(withArgs("sleep", "1000"), withNetNS(inner.path), withAnnotation("org.huskvm.nics", "1")))
	inner.do(func() error {
		target, err := netns.GetFromPath(outer.path)
		if err != nil {
			return err
		}
		defer target.Close()
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "host1", PeerNamespace: netlink.NsFd(int(target))}
		return errors.Join(netlink.LinkAdd(veth), netlink.LinkSetUp(veth))
	})
	tells := func() bool {
		return strings.Contains(e.do("state", box.id).is(0).stdout, "interface eth1: no network card of the guest is free")
	}
	eventually(t, "state tells of the interface without a card", testTimeout, tells)
	box.exec("ping", "-c", "1", "-W", "5", "10.99.0.1").is(0)
	inner.do(func() error {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	eventually(t, "state tells of it no more", testTimeout, func() bool { return !tells() })
	box.stop()
}

// startIn starts a program of the host in the namespace. The test's end ends it.
func (n *netNS) startIn(attr *unix.SysProcAttr, command ...string) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.SysProcAttr = attr
	n.do(cmd.Start)
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

// TestNetworkOfAnotherRuntimesContainer: husk does not take the network of a container of
// another runtime.
func TestNetworkOfAnotherRuntimesContainer(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	outer, inner := e.netNS(), e.netNS()
	defer outer.remove()
	defer inner.remove()
	wire(t, outer, inner, 1500)
	other := inner.startIn(&unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}, "sleep", "1000")
	r := e.do("create", "--bundle", e.bundle(withNetNS(inner.path)), e.id()).is(1)
	if want := fmt.Sprintf("process %d (\"sleep\") of another container lives in the network namespace %s", other.Process.Pid, inner.path); !strings.Contains(r.stderr, want) {
		t.Errorf("refused with %q, want %q", r.stderr, want)
	}
	r.oneLogLine(strings.TrimSpace(r.stderr))
	inner.do(func() error { return sameAsBefore("eth0") })
}

// TestVisitorInTheNamespace: a program of the host that only uses a namespace does not count as
// a container.
func TestVisitorInTheNamespace(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	outer, inner := e.netNS(), e.netNS()
	defer outer.remove()
	defer inner.remove()
	wire(t, outer, inner, 1500)
	inner.startIn(nil, "sleep", "1000")
	e.ok("run", "--bundle", e.bundle(withScript("ping -c 2 -W 5 10.99.0.1"), withNetNS(inner.path)), e.id())
}
