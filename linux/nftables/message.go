// Package nftables copies the packet filter of one network namespace to another, which may
// belong to another kernel. It does not interpret rules: except for a few attributes, the
// kernel's dump of an object is the message that makes it again. All functions work in the
// network namespace of the calling thread.
package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Message makes one table, chain, object, set or rule, or elements of a set.
type Message struct {
	Type       uint8 // NFT_MSG_NEW*
	Family     uint8 // NFPROTO_*
	Attributes []byte
}

// attribute is one netlink attribute.
type attribute struct {
	kind  uint16 // type and flags
	value []byte
}

func (a attribute) is(kind int) bool {
	return int(a.kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)) == kind
}

const attributeHeader = 4

// errAttributes is returned for bytes that are not a list of netlink attributes.
var errAttributes = errors.New("netlink attributes are damaged")

// parse splits a list of attributes.
func parse(b []byte) (list []attribute, err error) {
	for len(b) >= attributeHeader {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attributeHeader || n > len(b) {
			return nil, errAttributes
		}
		list = append(list, attribute{binary.NativeEndian.Uint16(b[2:]), b[attributeHeader:n]})
		b = b[min(align(n), len(b)):]
	}
	return list, nil
}

func align(n int) int { return (n + 3) &^ 3 }

func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attributeHeader+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

func text(s string) []byte { return append([]byte(s), 0) }

// find returns the value of the first attribute of a kind; nil if there is none.
func find(list []attribute, kind int) []byte {
	for _, a := range list {
		if a.is(kind) {
			return a.value
		}
	}
	return nil
}

func (m *Message) value(kind int) []byte {
	list, err := parse(m.Attributes)
	if err != nil {
		return nil
	}
	return find(list, kind)
}

func (m *Message) text(kind int) string { return unix.ByteSliceToString(m.value(kind)) }

// names gives, for each type of message, the attribute with the object's own name. The name of
// the table is attribute 1 in all of them.
var names = map[uint8]int{
	unix.NFT_MSG_NEWTABLE: unix.NFTA_TABLE_NAME, unix.NFT_MSG_NEWCHAIN: unix.NFTA_CHAIN_NAME, unix.NFT_MSG_NEWRULE: unix.NFTA_RULE_CHAIN,
	unix.NFT_MSG_NEWSET: unix.NFTA_SET_NAME, unix.NFT_MSG_NEWSETELEM: unix.NFTA_SET_ELEM_LIST_SET, unix.NFT_MSG_NEWOBJ: unix.NFTA_OBJ_NAME,
	unix.NFT_MSG_NEWFLOWTABLE: flowtableName,
}

// Table returns the name of the table that the object belongs to.
func (m *Message) Table() string { return m.text(1) }

// Name returns the object's own name. For a rule it is the name of its chain, for elements the
// name of their set.
func (m *Message) Name() string { return m.text(names[m.Type]) }

var families = map[uint8]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_ARP: "arp", unix.NFPROTO_NETDEV: "netdev",
	unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_IPV6: "ip6",
}

// String returns the object as users know it, such as "rule of chain ip filter INPUT".
func (m *Message) String() string {
	kind := map[uint8]string{
		unix.NFT_MSG_NEWTABLE: "table", unix.NFT_MSG_NEWCHAIN: "chain", unix.NFT_MSG_NEWRULE: "rule of chain", unix.NFT_MSG_NEWSET: "set",
		unix.NFT_MSG_NEWSETELEM: "elements of set", unix.NFT_MSG_NEWOBJ: "object", unix.NFT_MSG_NEWFLOWTABLE: "flowtable",
	}[m.Type]
	s := fmt.Sprintf("nftables %s %s %s", kind, families[m.Family], m.Table())
	if m.Type != unix.NFT_MSG_NEWTABLE {
		s += " " + m.Name()
	}
	var expressions []string
	for _, e := range m.Expressions() {
		expressions = append(expressions, e.String())
	}
	if len(expressions) > 0 {
		s += " (" + strings.Join(expressions, ", ") + ")"
	}
	return s
}

// Expression is a part of a rule.
type Expression struct {
	Name string
	data []byte
}

// Expressions returns the expressions of a rule in their order. It returns nil for other
// messages.
func (m *Message) Expressions() (all []Expression) {
	if m.Type != unix.NFT_MSG_NEWRULE {
		return nil
	}
	list, err := parse(m.value(unix.NFTA_RULE_EXPRESSIONS))
	if err != nil {
		return nil
	}
	for _, item := range list {
		parts, err := parse(item.value)
		if err != nil {
			return nil
		}
		all = append(all, Expression{unix.ByteSliceToString(find(parts, unix.NFTA_EXPR_NAME)), find(parts, unix.NFTA_EXPR_DATA)})
	}
	return all
}

// Value returns an attribute of the expression; nil if it has none of that kind.
func (e Expression) Value(kind int) []byte {
	list, err := parse(e.data)
	if err != nil {
		return nil
	}
	return find(list, kind)
}

// Uint32 returns an attribute of the expression as a number. ok is false if it has none.
func (e Expression) Uint32(kind int) (uint32, bool) {
	v := e.Value(kind)
	if len(v) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(v), true
}

// The kernel's names for iptables' matches and targets.
const (
	Match  = "match"
	Target = "target"
)

// Extension returns the name of an iptables match or target. It is empty for other expressions.
func (e Expression) Extension() string {
	switch e.Name {
	case Match:
		return unix.ByteSliceToString(e.Value(unix.NFTA_MATCH_NAME))
	case Target:
		return unix.ByteSliceToString(e.Value(unix.NFTA_TARGET_NAME))
	}
	return ""
}

func (e Expression) String() string {
	if x := e.Extension(); x != "" {
		return e.Name + " " + x
	}
	return e.Name
}

// Jump returns the chain to which a jump or goto leads. It is empty for other expressions.
func (e Expression) Jump() string {
	if e.Name != "immediate" {
		return ""
	}
	data, err := parse(e.Value(unix.NFTA_IMMEDIATE_DATA))
	if err != nil {
		return ""
	}
	verdict, err := parse(find(data, unix.NFTA_DATA_VERDICT))
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(find(verdict, unix.NFTA_VERDICT_CHAIN))
}

// Compared returns the value that a comparison compares with, and whether it tests for
// equality.
func (e Expression) Compared() (value []byte, equal bool) {
	if e.Name != "cmp" {
		return nil, false
	}
	data, err := parse(e.Value(unix.NFTA_CMP_DATA))
	if err != nil {
		return nil, false
	}
	op, _ := e.Uint32(unix.NFTA_CMP_OP)
	return find(data, unix.NFTA_DATA_VALUE), op == unix.NFT_CMP_EQ
}

// policyDrop is NF_DROP.
const policyDrop = 0

// Drops says whether the message makes a chain with the policy drop.
func (m *Message) Drops() bool {
	policy := m.value(unix.NFTA_CHAIN_POLICY)
	return m.Type == unix.NFT_MSG_NEWCHAIN && len(policy) == 4 && binary.BigEndian.Uint32(policy) == policyDrop
}
