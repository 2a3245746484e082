package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// applyTimeout bounds the wait for the kernel's answer. In that time the kernel may load a
// module for each kind of expression, which takes seconds under emulation.
const applyTimeout = 20 * time.Second

// Replace removes the tables that the messages earlier have made, and makes what the messages
// now describe, in one transaction: no packet meets half of the rules.
//
// After an error the ruleset is as before, with one exception: if the kernel accepted a rule
// but made another one of it, the error names that rule, and the new ruleset is in force with
// that rule as the kernel has made it.
func Replace(earlier, now []Message) error {
	if len(earlier) == 0 && len(now) == 0 {
		return nil
	}
	if err := transact(slices.Concat(removal(earlier), creation(now))); err != nil {
		return err
	}
	made, err := Dump()
	if err != nil {
		return err
	}
	return compare(now, made)
}

// step is one message of a transaction.
type step struct {
	Message
	flags uint16
}

// removal returns the steps that remove the tables of messages. It is no error if somebody else
// has removed one already.
func removal(messages []Message) (steps []step) {
	for _, m := range messages {
		if m.Type != unix.NFT_MSG_NEWTABLE {
			continue
		}
		named := appendAttribute(nil, unix.NFTA_TABLE_NAME, text(m.Name()))
		for _, kind := range []uint8{unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE} {
			steps = append(steps, step{Message{kind, m.Family, named}, unix.NLM_F_CREATE})
		}
	}
	return steps
}

// Tables returns one message for each table that the messages make. Replace needs only these of
// the earlier messages.
func Tables(messages []Message) (tables []Message) {
	for _, m := range messages {
		same := func(t Message) bool { return t.Family == m.Family && t.Name() == m.Name() }
		if m.Type == unix.NFT_MSG_NEWTABLE && !slices.ContainsFunc(tables, same) {
			tables = append(tables, m)
		}
	}
	return tables
}

func creation(messages []Message) (steps []step) {
	for _, m := range messages {
		flags := uint16(unix.NLM_F_CREATE)
		if m.Type == unix.NFT_MSG_NEWRULE {
			flags |= unix.NLM_F_APPEND
		}
		steps = append(steps, step{m, flags})
	}
	return steps
}

// transact makes the kernel do all steps or none.
func transact(steps []step) error {
	timeout := unix.NsecToTimeval(applyTimeout.Nanoseconds())
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("write nftables ruleset: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fmt.Errorf("write nftables ruleset: %w", err)
	}
	batch := batch(steps)
	// A batch that does not fit into the buffer fails as a whole, so an error here shows there.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*len(batch)+64<<10)
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("write nftables ruleset: %w", err)
	}
	return answers(fd, steps)
}

// batch encodes the steps with sequence numbers from 1 on, between the message that begins the
// transaction, with number 0, and the one that ends it.
func batch(steps []step) []byte {
	frame := func(b []byte, kind, flags uint16, seq int, family uint8, resource uint16, body []byte) []byte {
		b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+4+len(body)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
		b = binary.NativeEndian.AppendUint32(b, uint32(seq))
		b = binary.NativeEndian.AppendUint32(b, 0)
		b = append(b, family, unix.NFNETLINK_V0)
		b = binary.BigEndian.AppendUint16(b, resource)
		return append(b, body...)
	}
	out := frame(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	for i, s := range steps {
		flags := s.flags
		if i == len(steps)-1 {
			flags |= unix.NLM_F_ACK
		}
		out = frame(out, unix.NFNL_SUBSYS_NFTABLES<<8|uint16(s.Type), flags, i+1, s.Family, 0, s.Attributes)
	}
	return frame(out, unix.NFNL_MSG_BATCH_END, 0, len(steps)+1, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
}

// answers reads the kernel's answers to the steps. The kernel always answers the last step. If
// it refuses the whole batch, it answers the message that begins it.
func answers(fd int, steps []step) error {
	var refused error
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write nftables ruleset: %w", err)
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN+4 || size > len(b) {
				break
			}
			seq := int(binary.NativeEndian.Uint32(b[8:]))
			if code := int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:])); code != 0 && refused == nil {
				what := "nftables ruleset"
				if seq > 0 && seq <= len(steps) {
					what = steps[seq-1].String()
				}
				refused = fmt.Errorf("%s: %w", what, unix.Errno(-code))
			}
			if seq == len(steps) || seq == 0 {
				return refused
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

// changing lists the expressions whose data the kernel itself changes as packets pass.
var changing = []string{"counter", "limit", "quota", "last", "connlimit", Match, Target}

// compare returns an error that names the first rule which the kernel has not made as it was
// asked to. A kernel leaves out attributes that it does not know.
func compare(want, have []Message) error {
	type chain struct {
		family      uint8
		table, name string
	}
	rules := map[chain][]*Message{}
	of := func(m *Message) chain { return chain{m.Family, m.Table(), m.Name()} }
	for i := range have {
		if m := &have[i]; m.Type == unix.NFT_MSG_NEWRULE {
			rules[of(m)] = append(rules[of(m)], m)
		}
	}
	for i := range want {
		m := &want[i]
		if m.Type != unix.NFT_MSG_NEWRULE {
			continue
		}
		rest := rules[of(m)]
		if len(rest) == 0 {
			return fmt.Errorf("%s: the kernel has not made it", m)
		}
		rules[of(m)] = rest[1:]
		if !same(m.Expressions(), rest[0].Expressions()) {
			return fmt.Errorf("%s: the kernel has made another of it (%s)", m, rest[0])
		}
	}
	return nil
}

func same(a, b []Expression) bool {
	return slices.EqualFunc(a, b, func(a, b Expression) bool {
		return a.Name == b.Name && a.Extension() == b.Extension() &&
			(slices.Contains(changing, a.Name) || bytes.Equal(a.data, b.data))
	})
}
