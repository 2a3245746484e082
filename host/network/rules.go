package network

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/nftables"
)

// Docker's rules for its resolver at 127.0.0.11, made with iptables or nftables. The guest does
// not need them, because the agent stands in for the resolver.
const (
	dockerDNSTable = "docker-dns"
	dockerNATTable = "nat"
)

var dockerDNSChains = []string{"DOCKER_OUTPUT", "DOCKER_POSTROUTING"}

// ReadRules returns the nftables rules of the calling thread's network namespace that a guest
// can have and that decide about packets. uncarried names those that a guest cannot have.
func ReadRules() (rules []nftables.Message, uncarried []string, err error) {
	all, err := nftables.Dump()
	if err != nil {
		return nil, nil, err
	}
	for _, m := range withoutVoidTables(withoutResolver(all)) {
		if why := uncarriable(&m); why != "" {
			uncarried = append(uncarried, fmt.Sprintf("%s: %s", &m, why))
			continue
		}
		rules = append(rules, m)
	}
	return rules, uncarried, nil
}

func withoutResolver(all []nftables.Message) []nftables.Message {
	return slices.DeleteFunc(all, func(m nftables.Message) bool {
		if m.Family != unix.NFPROTO_IPV4 {
			return false
		}
		if m.Table() == dockerDNSTable {
			return true
		}
		if m.Table() != dockerNATTable || (m.Type != unix.NFT_MSG_NEWCHAIN && m.Type != unix.NFT_MSG_NEWRULE) {
			return false
		}
		return slices.Contains(dockerDNSChains, m.Name()) || slices.ContainsFunc(m.Expressions(), func(e nftables.Expression) bool {
			return slices.Contains(dockerDNSChains, e.Jump())
		})
	})
}

// withoutVoidTables leaves out tables that change nothing for any packet. iptables makes such
// tables when somebody only lists rules.
func withoutVoidTables(all []nftables.Message) []nftables.Message {
	type table struct {
		family uint8
		name   string
	}
	decides := map[table]bool{}
	for i := range all {
		m := &all[i]
		switch m.Type {
		case unix.NFT_MSG_NEWTABLE:
		case unix.NFT_MSG_NEWCHAIN:
			if m.Drops() {
				decides[table{m.Family, m.Table()}] = true
			}
		default:
			decides[table{m.Family, m.Table()}] = true
		}
	}
	return slices.DeleteFunc(all, func(m nftables.Message) bool { return !decides[table{m.Family, m.Table()}] })
}

// Keys of meta and socket expressions that refer to things of the host.
const (
	metaIIF, metaOIF           = unix.NFT_META_IIF, unix.NFT_META_OIF
	metaIIFGroup, metaOIFGroup = unix.NFT_META_IIFGROUP, unix.NFT_META_OIFGROUP
	metaCgroup                 = unix.NFT_META_CGROUP
	socketKey, socketCgroup    = 1, 3 // NFTA_SOCKET_KEY, NFT_SOCKET_CGROUPV2
	loopbackIndex              = 1
)

// uncarriable returns why a guest cannot have the rule; "" if it can, as far as the host can
// know.
func uncarriable(m *nftables.Message) string {
	if m.Type == unix.NFT_MSG_NEWFLOWTABLE {
		return "a flowtable is of the host's interfaces"
	}
	expressions := m.Expressions()
	for i, e := range expressions {
		var next nftables.Expression
		if i+1 < len(expressions) {
			next = expressions[i+1]
		}
		if why := uncarriableExpression(e, next); why != "" {
			return why
		}
	}
	return ""
}

func uncarriableExpression(e, next nftables.Expression) string {
	switch e.Name {
	case "queue":
		return "a program of the host decides"
	case "meta":
		key, _ := e.Uint32(unix.NFTA_META_KEY)
		switch key {
		case metaIIF, metaOIF:
			if index, _ := next.Compared(); len(index) != 4 || binary.NativeEndian.Uint32(index) != loopbackIndex {
				return "it names an interface by its number, which the guest's has not: use iifname and oifname"
			}
		case metaIIFGroup, metaOIFGroup:
			return "it asks for a group of interfaces"
		case metaCgroup:
			return "it asks for a cgroup of the host"
		}
	case "socket":
		if key, _ := e.Uint32(socketKey); key == socketCgroup {
			return "it asks for a cgroup of the host"
		}
	}
	switch e.Extension() {
	case "NFQUEUE":
		return "a program of the host decides"
	case "set", "SET":
		return "its ipset is the host's: use a set of nftables"
	case "cgroup":
		return "it asks for a cgroup of the host"
	case "bpf":
		return "its program is the host's"
	case "devgroup":
		return "it asks for a group of interfaces"
	}
	return ""
}
