package nftables

import (
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNew runs f in a new network namespace, on a thread that ends afterwards.
func inNew(t *testing.T, f func() error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skip(err)
	}
}

// run runs a program in the network namespace of the thread.
func run(t *testing.T, stdin, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v: %s", cmd, err, out)
	}
	return string(out)
}

const ruleset = `
table inet filter {
	set hosts { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.1, 192.168.0.0-192.168.0.9, 192.168.0.10-192.168.0.12 } }
	set seen { type ipv4_addr; size 100; flags dynamic,timeout; timeout 5m; }
	set ports { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.1 . 80-90, 10.0.0.2 . 443 } }
	map verdicts { type inet_service : verdict; elements = { 22 : jump ssh, 23 : drop } }
	map names { type ifname : mark; elements = { "eth0" : 0x7 } }
	counter web { }
	quota most { over 10 mbytes }
	limit few { rate 5/second }
	chain ssh { ip saddr @hosts accept; reject with icmpx admin-prohibited; }
	chain input {
		type filter hook input priority -5; policy drop;
		iif "lo" accept
		ct state established,related accept
		tcp dport vmap @verdicts
		tcp dport { 80, 443, 8000-8100 } counter name "web" accept
		ip6 saddr fd00::/8 udp dport 53 limit rate 10/minute burst 5 packets accept
		ip saddr . tcp dport @ports meta mark set iifname map @names
		add @seen { ip saddr limit rate 3/second } log prefix "seen: " accept
		meta skuid 0 counter comment "root's"
		fib saddr type broadcast drop
	}
	chain output { type route hook output priority 0; policy accept; ip dscp set cs1; }
}
table ip nat {
	chain post { type nat hook postrouting priority srcnat; oifname "eth*" masquerade; }
}
table ip6 asleep { flags dormant; chain c { type filter hook input priority 0; drop; }; }
table arp a { chain in { type filter hook input priority 0; arp operation request counter accept; }; }
table netdev d { chain in { type filter hook ingress device "lo" priority 0; ip ttl 1 drop; }; }
`

// TestRulesetComesAlong: nft lists the same for the copy as for the original.
func TestRulesetComesAlong(t *testing.T) {
	need(t, "nft")
	var messages []Message
	var want string
	inNew(t, func() (err error) {
		run(t, ruleset, "nft", "-f", "-")
		want = run(t, "", "nft", "-s", "list", "ruleset")
		messages, err = Dump()
		return err
	})
	inNew(t, func() error {
		for i, earlier := range [][]Message{nil, messages} {
			if err := Replace(earlier, messages); err != nil {
				return err
			}
			if got := run(t, "", "nft", "-s", "list", "ruleset"); got != want {
				t.Errorf("time %d: got %s\nwant %s", i, got, want)
			}
		}
		// A table of somebody else stays. A table of ours that somebody has removed is no
		// error.
		run(t, "", "nft", "add", "table", "ip", "theirs")
		run(t, "", "nft", "delete", "table", "ip", "nat")
		if err := Replace(messages, nil); err != nil {
			return err
		}
		if got := run(t, "", "nft", "list", "ruleset"); got != "table ip theirs {\n}\n" {
			t.Errorf("taken away, left: %s", got)
		}
		return nil
	})
}

// TestChainWithoutName: the copy of a nameless chain gets a name, because the kernel no longer
// binds it to its rule.
func TestChainWithoutName(t *testing.T) {
	need(t, "nft")
	describe := func(messages []Message) (all []string) {
		for _, m := range messages {
			s := m.String()
			for _, e := range m.Expressions() {
				s += " " + e.Jump()
			}
			all = append(all, s)
		}
		return all
	}
	var messages []Message
	inNew(t, func() (err error) {
		run(t, `table ip t { chain c { type filter hook input priority 0; jump { ip daddr 127.0.0.1 accept; drop; }; }; }`, "nft", "-f", "-")
		messages, err = Dump()
		return err
	})
	inNew(t, func() error {
		if err := Replace(nil, messages); err != nil {
			return err
		}
		again, err := Dump()
		if got, want := describe(again), describe(messages); !slices.Equal(got, want) {
			t.Errorf("got %q\nwant %q", got, want)
		}
		return err
	})
}

func TestIptablesComeAlong(t *testing.T) {
	need(t, "iptables-nft")
	var messages []Message
	save := func() string {
		out := run(t, "", "iptables-nft-save") + run(t, "", "ip6tables-nft-save")
		var rules []string
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "#") {
				rules = append(rules, line)
			}
		}
		return strings.Join(rules, "")
	}
	var want string
	inNew(t, func() (err error) {
		for _, rule := range []string{
			"-P FORWARD DROP", "-N LOGGED", "-A LOGGED -m limit --limit 3/min -j LOG --log-prefix x", "-A LOGGED -j REJECT",
			"-A INPUT -p tcp -m multiport --dports 80,443 -m conntrack --ctstate NEW -j ACCEPT",
			"-A INPUT -p udp -m udp --sport 53 -m comment --comment dns -j LOGGED", "-A OUTPUT ! -p tcp -m owner --uid-owner 7 -j DROP",
			"-A OUTPUT -d 10.66.0.1 -p icmp -m icmp --icmp-type 8 -j DROP", "-A INPUT -m mac --mac-source 02:00:00:00:00:01 -j DROP",
			"-t nat -A OUTPUT -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1:81", "-t nat -A POSTROUTING -o eth0 -j MASQUERADE",
			"-t mangle -A PREROUTING -p tcp --syn -j TCPMSS --set-mss 1300", "-t raw -A OUTPUT -p udp -j NOTRACK",
			"-A INPUT -m statistic --mode random --probability 0.5 -j DROP", "-A INPUT -m recent --name bad --update --seconds 60 -j DROP",
			"-A INPUT -p tcp -m hashlimit --hashlimit-above 5/sec --hashlimit-name h --hashlimit-mode srcip -j DROP",
		} {
			run(t, "", "iptables-nft", strings.Fields(rule)...)
		}
		run(t, "", "ip6tables-nft", strings.Fields("-A INPUT -p icmpv6 --icmpv6-type router-advertisement -j DROP")...)
		want = save()
		messages, err = Dump()
		return err
	})
	inNew(t, func() error {
		if err := Replace(nil, messages); err != nil {
			return err
		}
		if got := save(); got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
		return nil
	})
}

// TestWhatTheKernelDoesNotHave: for an expression that the kernel does not know the error names
// the rule, and nothing is made.
func TestWhatTheKernelDoesNotHave(t *testing.T) {
	need(t, "nft")
	var messages []Message
	inNew(t, func() (err error) {
		run(t, `table ip t { chain c { type filter hook input priority 0; policy drop; meta mark 7 accept; }; }`, "nft", "-f", "-")
		messages, err = Dump()
		return err
	})
	rule := &messages[len(messages)-1]
	rule.Attributes = []byte(strings.ReplaceAll(string(rule.Attributes), "meta\x00", "beta\x00"))
	inNew(t, func() error {
		err := Replace(nil, messages)
		if err == nil || !strings.Contains(err.Error(), "rule of chain ip t c (beta, cmp, immediate)") {
			t.Errorf("error %v does not name the rule", err)
		}
		if left, err := Dump(); err != nil || len(left) != 0 {
			t.Errorf("left %v, %v", left, err)
		}
		return nil
	})
}

// TestRuleThatBecomesAnother: a kernel leaves out attributes that it does not know, and Replace
// notices.
func TestRuleThatBecomesAnother(t *testing.T) {
	rule := func(data string) Message {
		expression := appendAttribute(nil, unix.NFTA_EXPR_NAME, text("fib"))
		expression = appendAttribute(expression, unix.NFTA_EXPR_DATA, []byte(data))
		of := appendAttribute(nil, unix.NFTA_RULE_TABLE, text("t"))
		of = appendAttribute(of, unix.NFTA_RULE_CHAIN, text("c"))
		return Message{unix.NFT_MSG_NEWRULE, unix.NFPROTO_IPV4, appendAttribute(of, unix.NFTA_RULE_EXPRESSIONS, appendAttribute(nil, unix.NFTA_LIST_ELEM, expression))}
	}
	want := []Message{rule("all of it")}
	if err := compare(want, want); err != nil {
		t.Error(err)
	}
	for _, have := range [][]Message{nil, {rule("half of it")}} {
		if err := compare(want, have); err == nil || !strings.Contains(err.Error(), "rule of chain ip t c (fib)") {
			t.Errorf("%v for %v", err, have)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 1, 2, 3, 4})
	f.Fuzz(func(_ *testing.T, b []byte) {
		for kind := range remade {
			m := Message{Type: kind, Attributes: b}
			_ = m.String()
			_, _ = remake(kind, b, 1)
		}
	})
}

// TestTables: Tables does not grow when the same rules are tried many times.
func TestTables(t *testing.T) {
	table := func(family uint8, name string) Message {
		return Message{Type: unix.NFT_MSG_NEWTABLE, Family: family, Attributes: appendAttribute(nil, unix.NFTA_TABLE_NAME, text(name))}
	}
	rule := Message{Type: unix.NFT_MSG_NEWRULE, Family: unix.NFPROTO_IPV4, Attributes: appendAttribute(nil, unix.NFTA_RULE_TABLE, text("a"))}
	want := []Message{table(unix.NFPROTO_IPV4, "a"), table(unix.NFPROTO_IPV6, "a"), table(unix.NFPROTO_IPV4, "b")}
	tables := want
	for range 3 {
		tables = Tables(slices.Concat(tables, []Message{want[0], rule, want[1], rule, want[2]}))
	}
	if !reflect.DeepEqual(tables, want) {
		t.Errorf("got %v, want %v", tables, want)
	}
}
