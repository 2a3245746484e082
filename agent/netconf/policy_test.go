package netconf

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/nftables"
	"github.com/huskvm/husk/protocol"
)

// tableMessage returns a message that makes a table of family ip.
func tableMessage(name string) *protocol.NftablesMessage {
	value := append([]byte(name), 0)
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFTA_TABLE_NAME)
	b = append(append(b, value...), make([]byte, (4-len(value)%4)%4)...)
	return &protocol.NftablesMessage{Type: unix.NFT_MSG_NEWTABLE, Family: unix.NFPROTO_IPV4, Attributes: b}
}

func TestPolicyFollows(t *testing.T) {
	ns, _ := inNetNS(t)
	var p Policy
	apply := func(sysctls []*protocol.Sysctl, tables ...string) []string {
		t.Helper()
		var messages []*protocol.NftablesMessage
		for _, name := range tables {
			messages = append(messages, tableMessage(name))
		}
		unset, err := p.Apply(ns, sysctls, messages)
		if err != nil {
			t.Fatal(err)
		}
		return unset
	}
	has := func(name, want string, tables ...string) {
		t.Helper()
		err := inNamespace(ns, func() error {
			if got, err := os.ReadFile(sysctlDir + "/" + name); err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s is %q, %v, want %q", name, got, err, want)
			}
			all, err := nftables.Dump()
			var names []string
			for _, m := range all {
				names = append(names, m.Table())
			}
			if !slices.Equal(names, tables) {
				t.Errorf("tables %q, want %q", names, tables)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	const name = "ipv4/tcp_fin_timeout"
	set := func(v string) []*protocol.Sysctl { return []*protocol.Sysctl{{Path: name, Value: v}} }
	has(name, "60")
	apply(set("31"), "a", "b")
	has(name, "31", "a", "b")
	apply(set("32"), "b", "c")
	has(name, "32", "b", "c")
	unset := apply([]*protocol.Sysctl{{Path: "ipv4/of_a_newer_kernel", Value: "1"}, {Path: "ipv4/tcp_sack", Value: "nonsense"}}, "c")
	if want := []string{"ipv4/of_a_newer_kernel", "ipv4/tcp_sack"}; !slices.Equal(unset, want) {
		t.Errorf("not set: %q, want %q", unset, want)
	}
	has(name, "60", "c")
	apply(nil)
	has(name, "60")
	for _, outside := range []string{"../kernel/modprobe", "/etc/passwd", "ipv4/../../kernel/modprobe", ""} {
		if _, err := p.Apply(ns, []*protocol.Sysctl{{Path: outside, Value: "x"}}, nil); err == nil {
			t.Errorf("path %q is no error", outside)
		}
	}
}
