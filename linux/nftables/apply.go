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

// applyTimeout bounds the wait for the kernel's answer. Under emulation it loads a
// module for each kind of expression meanwhile.
const applyTimeout = 20 * time.Second

// Replace makes what the messages say, in the place of the tables that an earlier call
// has made of others, in one step: no packet sees half of it. On error everything is as
// it was, or, where this kernel has not understood what it took, the packet filter is as
// asked for, but for that.
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

// removal removes the tables, also those that somebody else has removed already.
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

// Tables returns the messages that make tables, of each table one: nothing else of what
// was made earlier does Replace look at.
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

// transact has the kernel do all steps or none.
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
	// What does not fit fails as a whole.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*len(batch)+64<<10)
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("write nftables ruleset: %w", err)
	}
	return answers(fd, steps)
}

// batch has the steps numbered from 1 on, between its begin, 0, and its end.
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

// answers reads what the kernel says of the steps, the last of which it always
// answers. Where it refuses the batch, that is its answer to the begin.
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

// changing are expressions whose data the kernel changes as packets pass.
var changing = []string{"counter", "limit", "quota", "last", "connlimit", Match, Target}

// compare says which rule the kernel has made another of, as one does that passes over
// what it does not know.
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
