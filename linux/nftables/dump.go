package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// remade lists the attributes of a dump that are needed to make the same object again. All
// others are counters, handles, and the owner, a process that exists on the host only.
var remade = map[uint8][]int{
	unix.NFT_MSG_NEWTABLE: {unix.NFTA_TABLE_NAME, unix.NFTA_TABLE_FLAGS, tableUserdata},
	unix.NFT_MSG_NEWCHAIN: {
		unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY, unix.NFTA_CHAIN_TYPE,
		chainFlags, chainUserdata,
	},
	unix.NFT_MSG_NEWRULE: {unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_EXPRESSIONS, unix.NFTA_RULE_USERDATA},
	unix.NFT_MSG_NEWSET: {
		unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, unix.NFTA_SET_FLAGS, unix.NFTA_SET_KEY_TYPE, unix.NFTA_SET_KEY_LEN,
		unix.NFTA_SET_DATA_TYPE, unix.NFTA_SET_DATA_LEN, unix.NFTA_SET_POLICY, unix.NFTA_SET_DESC, unix.NFTA_SET_TIMEOUT,
		unix.NFTA_SET_GC_INTERVAL, unix.NFTA_SET_USERDATA, unix.NFTA_SET_OBJ_TYPE, setExpr, setExpressions,
	},
	unix.NFT_MSG_NEWOBJ:       {unix.NFTA_OBJ_TABLE, unix.NFTA_OBJ_NAME, unix.NFTA_OBJ_TYPE, unix.NFTA_OBJ_DATA, objUserdata},
	unix.NFT_MSG_NEWFLOWTABLE: {flowtableTable, flowtableName},
}

// Constants of linux/netfilter/nf_tables.h that golang.org/x/sys does not have.
const (
	tableUserdata  = 6
	tableDormant   = 1 // the only flag of a table that does not depend on an owner
	chainFlags     = 10
	chainUserdata  = 12
	chainOffload   = 2 // the only flag of a chain that no other attribute tells
	setExpr        = 17
	setExpressions = 18
	objUserdata    = 8
	flowtableTable = 1
	flowtableName  = 2

	elemKey, elemFlags = 1, 3
	elemIntervalEnd    = 1
)

// maxElements bounds the elements in one message, in bytes. The length of an attribute has 16
// bits.
const maxElements = 32 << 10

// Dump returns messages that make the ruleset of the calling thread's network namespace again,
// in the order in which they have to be sent. It returns nil if the kernel has no nftables.
func Dump() ([]Message, error) {
	const tries = 10
	for range tries {
		before, err := generation()
		if unsupported(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list nftables ruleset: %w", err)
		}
		all, err := dumpOnce()
		if errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
			continue // the ruleset has changed during the dump
		}
		if err != nil {
			return nil, fmt.Errorf("list nftables ruleset: %w", err)
		}
		if after, err := generation(); err == nil && after == before {
			return all, nil
		}
	}
	return nil, errors.New("list nftables ruleset: it changes all the time")
}

// unsupported says whether err is the answer of a kernel without nftables.
func unsupported(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EAFNOSUPPORT)
}

// Generation returns a number that increases with each change of the namespace's ruleset. It is
// 0 if the kernel has no nftables.
func Generation() (uint32, error) {
	id, err := generation()
	if unsupported(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("ask for nftables generation: %w", err)
	}
	return id, nil
}

func generation() (uint32, error) {
	answers, err := request(unix.NFT_MSG_GETGEN, 0, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return 0, err
	}
	for _, a := range answers {
		list, err := parse(a.Attributes)
		if err != nil {
			return 0, err
		}
		if id := find(list, unix.NFTA_GEN_ID); len(id) == 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, errAttributes
}

func request(kind, flags int, family uint8, attributes []byte) ([]Message, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: unix.NFNETLINK_V0})
	req.AddRawData(attributes)
	answers, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	var all []Message
	for _, a := range answers {
		if len(a) < nl.SizeofNfgenmsg {
			return nil, errAttributes
		}
		all = append(all, Message{Family: a[0], Attributes: a[nl.SizeofNfgenmsg:]})
	}
	return all, nil
}

func dumpOnce() (all []Message, err error) {
	for _, get := range []struct{ get, made int }{
		{unix.NFT_MSG_GETTABLE, unix.NFT_MSG_NEWTABLE},
		{unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN},
		{unix.NFT_MSG_GETFLOWTABLE, unix.NFT_MSG_NEWFLOWTABLE},
		{unix.NFT_MSG_GETOBJ, unix.NFT_MSG_NEWOBJ},
		{unix.NFT_MSG_GETSET, unix.NFT_MSG_NEWSET},
		{unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE},
	} {
		list, err := request(get.get, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC, nil)
		if err != nil {
			return nil, err
		}
		if get.made == unix.NFT_MSG_NEWTABLE && len(list) == 0 {
			return nil, nil
		}
		for i, m := range list {
			m.Type = uint8(get.made)
			if m.Attributes, err = remake(m.Type, m.Attributes, uint32(i+1)); err != nil {
				return nil, err
			}
			all = append(all, m)
		}
		if get.made != unix.NFT_MSG_NEWSET {
			continue
		}
		for _, set := range all {
			if set.Type != unix.NFT_MSG_NEWSET {
				continue
			}
			elements, err := dumpElements(&set)
			if err != nil {
				return nil, err
			}
			all = append(all, elements...)
		}
	}
	return all, nil
}

// remake turns the attributes of a dumped object into attributes that make it again. number is
// the number of the set in the transaction.
func remake(kind uint8, attributes []byte, number uint32) ([]byte, error) {
	list, err := parse(attributes)
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, a := range list {
		if !slices.ContainsFunc(remade[kind], a.is) {
			continue
		}
		var mask uint32
		switch {
		case kind == unix.NFT_MSG_NEWTABLE && a.is(unix.NFTA_TABLE_FLAGS):
			mask = tableDormant
		case kind == unix.NFT_MSG_NEWCHAIN && a.is(chainFlags):
			// A chain that the kernel has bound to one rule becomes an ordinary chain, to which
			// the rule jumps by name.
			mask = chainOffload
		}
		if mask == 0 {
			out = appendAttribute(out, a.kind, a.value)
		} else if len(a.value) == 4 && binary.BigEndian.Uint32(a.value)&mask != 0 {
			out = appendAttribute(out, a.kind, binary.BigEndian.AppendUint32(nil, mask))
		}
	}
	switch kind {
	case unix.NFT_MSG_NEWSET:
		out = appendAttribute(out, unix.NFTA_SET_ID, binary.BigEndian.AppendUint32(nil, number))
	case unix.NFT_MSG_NEWRULE:
		m := Message{Type: kind, Attributes: out}
		out = append(out, compat(m.Expressions())...)
	}
	return out, nil
}

// compat returns the attribute that says for which protocol a rule with iptables' extensions
// is. The extensions check it, but the kernel does not dump it, so it is read from the rule's
// own comparison.
func compat(expressions []Expression) []byte {
	if !slices.ContainsFunc(expressions, func(e Expression) bool { return e.Extension() != "" }) {
		return nil
	}
	for i, e := range expressions[:len(expressions)-1] {
		key, isMeta := e.Uint32(unix.NFTA_META_KEY)
		byMeta := e.Name == "meta" && isMeta && key == unix.NFT_META_L4PROTO
		base, _ := e.Uint32(unix.NFTA_PAYLOAD_BASE)
		offset, _ := e.Uint32(unix.NFTA_PAYLOAD_OFFSET)
		length, _ := e.Uint32(unix.NFTA_PAYLOAD_LEN)
		const protocol4, next6 = 9, 6 // offsets of the protocol number in the IPv4 and IPv6 header
		byHeader := e.Name == "payload" && base == unix.NFT_PAYLOAD_NETWORK_HEADER && length == 1 && (offset == protocol4 || offset == next6)
		if !byMeta && !byHeader {
			continue
		}
		value, equal := expressions[i+1].Compared()
		if len(value) != 1 {
			continue
		}
		var flags uint32
		if !equal {
			flags = unix.NFT_RULE_COMPAT_F_INV
		}
		inner := appendAttribute(nil, unix.NFTA_RULE_COMPAT_PROTO, binary.BigEndian.AppendUint32(nil, uint32(value[0])))
		inner = appendAttribute(inner, unix.NFTA_RULE_COMPAT_FLAGS, binary.BigEndian.AppendUint32(nil, flags))
		return appendAttribute(nil, unix.NLA_F_NESTED|unix.NFTA_RULE_COMPAT, inner)
	}
	return nil
}

// dumpElements returns the elements of a set in ascending order. In a set of intervals the
// start of an interval must be sent before its end.
func dumpElements(set *Message) ([]Message, error) {
	of := appendAttribute(nil, unix.NFTA_SET_ELEM_LIST_TABLE, text(set.Table()))
	of = appendAttribute(of, unix.NFTA_SET_ELEM_LIST_SET, text(set.Name()))
	parts, err := request(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, set.Family, of)
	if err != nil {
		return nil, err
	}
	var elements []attribute
	for _, p := range parts {
		list, err := parse(p.Attributes)
		if err != nil {
			return nil, err
		}
		some, err := parse(find(list, unix.NFTA_SET_ELEM_LIST_ELEMENTS))
		if err != nil {
			return nil, err
		}
		elements = append(elements, some...)
	}
	slices.SortStableFunc(elements, func(a, b attribute) int {
		keyA, endA := elementKey(a)
		keyB, endB := elementKey(b)
		if c := bytes.Compare(keyA, keyB); c != 0 {
			return c
		}
		return int(endB) - int(endA) // where one interval ends and the next one starts
	})
	var all []Message
	for len(elements) > 0 {
		var body []byte
		for len(elements) > 0 && len(body) < maxElements {
			body = appendAttribute(body, elements[0].kind, elements[0].value)
			elements = elements[1:]
		}
		all = append(all, Message{
			Type: unix.NFT_MSG_NEWSETELEM, Family: set.Family,
			Attributes: appendAttribute(slices.Clone(of), unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_LIST_ELEMENTS, body),
		})
	}
	return all, nil
}

// elementKey returns the key of an element. end is 1 if the element ends an interval, else 0.
func elementKey(a attribute) (key []byte, end uint32) {
	parts, err := parse(a.value)
	if err != nil {
		return nil, 0
	}
	data, err := parse(find(parts, elemKey))
	if err != nil {
		return nil, 0
	}
	if flags := find(parts, elemFlags); len(flags) == 4 {
		end = binary.BigEndian.Uint32(flags) & elemIntervalEnd
	}
	return find(data, unix.NFTA_DATA_VALUE), end
}
