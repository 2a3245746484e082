package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacyFamily describes one of the three packet filters that are older than nftables: the file
// that lists its tables, the socket options to read it, and the layout of an entry.
type legacyFamily struct {
	tool                 string
	list                 string // file in /proc/net that lists the namespace's tables
	domain, level        int
	getInfo, getEntries  int // socket options
	target, next, length int // offsets in an entry; length is that of an entry without matches
}

var legacyFamilies = []legacyFamily{
	{"iptables-legacy", "ip_tables_names", unix.AF_INET, unix.IPPROTO_IP, 64, 65, 88, 90, 112},
	{"ip6tables-legacy", "ip6_tables_names", unix.AF_INET6, unix.IPPROTO_IPV6, 64, 65, 140, 142, 168},
	{"arptables-legacy", "arp_tables_names", unix.AF_INET, unix.IPPROTO_IP, 96, 97, 164, 166, 192},
}

const (
	legacyName    = 32 // bytes of a table's name
	legacyHooks   = 5
	legacyTargetN = 29 // bytes of a target's name
	legacyAccept  = -2 // -NF_ACCEPT - 1
	legacyReturn  = -5 // -NF_REPEAT - 1

	offLegacyDestination, offLegacyMask = 4, 12 // offsets in an IPv4 entry
)

// legacyInfo is struct ipt_getinfo and its variants.
type legacyInfo struct {
	Name       [legacyName]byte
	ValidHooks uint32
	HookEntry  [legacyHooks]uint32
	Underflow  [legacyHooks]uint32
	NumEntries uint32
	Size       uint32
}

// maxLegacyRules bounds what is read of a table, in bytes.
const maxLegacyRules = 64 << 20

// LegacyFilters returns the names of tables of the calling thread's network namespace that have
// rules which only programs older than nftables see. Docker's rules for its resolver do not
// count. dir is /proc/net.
func LegacyFilters(dir *os.File) (tables []string, err error) {
	for _, f := range legacyFamilies {
		names, err := readAt(dir, f.list)
		if err != nil {
			return nil, err
		}
		for name := range strings.FieldsSeq(names) {
			has, err := f.hasRules(name)
			if err != nil {
				return nil, fmt.Errorf("read table %s of %s: %w", name, f.tool, err)
			}
			if has {
				tables = append(tables, fmt.Sprintf("table %s of %s has rules: make them with nftables (iptables-nft)", name, f.tool))
			}
		}
	}
	return tables, nil
}

// readAt returns the content of a file in /proc/net. It returns "" if the kernel lacks the
// feature that the file is about.
func readAt(dir *os.File, name string) (string, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read /proc/net/%s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	const most = 1 << 20
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return "", fmt.Errorf("read /proc/net/%s: %w", name, err)
	}
	return string(text), nil
}

func (f *legacyFamily) hasRules(table string) (bool, error) {
	fd, err := unix.Socket(f.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var info legacyInfo
	copy(info.Name[:legacyName-1], table)
	if err := getsockopt(fd, f.level, f.getInfo, unsafe.Slice((*byte)(unsafe.Pointer(&info)), unsafe.Sizeof(info))); err != nil {
		return false, err
	}
	if info.Size > maxLegacyRules {
		return true, nil
	}
	const header = 40 // name, size, and padding before the entries
	buf := make([]byte, header+int(info.Size))
	copy(buf[:legacyName-1], table)
	binary.NativeEndian.PutUint32(buf[legacyName:], info.Size)
	if err := getsockopt(fd, f.level, f.getEntries, buf); err != nil {
		return false, err
	}
	return f.decides(&info, buf[header:]), nil
}

func getsockopt(fd, level, option int, buf []byte) error {
	n := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	runtime.KeepAlive(buf)
	if errno != 0 {
		return errno
	}
	return nil
}

// legacyEntry is one rule, the head of a chain or its end.
type legacyEntry struct {
	offset  uint32
	bytes   []byte
	target  string
	verdict int32 // of the standard target, which has an empty name
	chain   string
}

// decides says whether the table can change what happens to a packet.
func (f *legacyFamily) decides(info *legacyInfo, entries []byte) bool {
	all, ok := f.split(entries)
	if !ok {
		return true
	}
	resolver := map[uint32]bool{} // offsets at which Docker's chains start
	chain := ""
	for i, e := range all {
		if e.target == "ERROR" && i+1 < len(all) && slices.Contains(dockerDNSChains, e.chain) {
			resolver[all[i+1].offset] = true
		}
	}
	hooks := func(at [legacyHooks]uint32, offset uint32) bool {
		for h, o := range at {
			if info.ValidHooks&(1<<h) != 0 && o == offset {
				return true
			}
		}
		return false
	}
	for _, e := range all {
		if hooks(info.HookEntry, e.offset) {
			chain = ""
		}
		switch {
		case e.target == "ERROR":
			chain = e.chain
		case hooks(info.Underflow, e.offset):
			if e.target != "" || e.verdict != legacyAccept {
				return true // the policy of a built-in chain
			}
		case slices.Contains(dockerDNSChains, chain):
		case e.target == "" && e.verdict == legacyReturn: // the end of a user-defined chain
		case e.target == "" && e.verdict > 0 && resolver[uint32(e.verdict)] && f.toResolver(e.bytes):
		default:
			return true
		}
	}
	return false
}

func (f *legacyFamily) split(b []byte) (all []legacyEntry, ok bool) {
	for offset := 0; offset < len(b); {
		rest := b[offset:]
		if len(rest) < f.length {
			return nil, false
		}
		target, next := int(binary.NativeEndian.Uint16(rest[f.target:])), int(binary.NativeEndian.Uint16(rest[f.next:]))
		const least = 2 + legacyTargetN + 1 + 4 // size, name, revision, verdict
		if target < f.length || next < target+least || next > len(rest) {
			return nil, false
		}
		e := legacyEntry{offset: uint32(offset), bytes: rest[:next], target: unix.ByteSliceToString(rest[target+2 : target+2+legacyTargetN])}
		data := rest[target+least-4 : next]
		e.verdict = int32(binary.NativeEndian.Uint32(data))
		if e.target == "ERROR" {
			e.chain = unix.ByteSliceToString(data)
		}
		all = append(all, e)
		offset += next
	}
	return all, true
}

// toResolver says whether an entry matches only packets to Docker's resolver.
func (f *legacyFamily) toResolver(entry []byte) bool {
	return f.list == "ip_tables_names" &&
		string(entry[offLegacyDestination:offLegacyDestination+4]) == string([]byte{127, 0, 0, 11}) &&
		string(entry[offLegacyMask:offLegacyMask+4]) == string([]byte{255, 255, 255, 255})
}
