package bootimage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// onDemand lists the modules that are in the initramfs and are not loaded at boot. The agent
// loads the driver of a device that a container is given; the kernel asks for the others
// itself, as it does on a host ("modprobe"). An entry is a pattern (see path.Match) for paths
// below the module directory, without the suffix.
//
// The list has modules that containers with a few capabilities use: firewalls, networks and
// tunnels in a container, Docker in Docker, an image mounted by a loop device. It leaves out
// modules that are large and rarely needed (xfs, btrfs, NFS, CIFS), and drivers of hardware.
var onDemand = []string{
	"kernel/fs/fuse/fuse",
	"kernel/drivers/net/tun",
	"kernel/drivers/block/virtio_blk",

	"kernel/net/netfilter/*", "kernel/net/netfilter/ipset/*", "kernel/net/netfilter/ipvs/*",
	"kernel/net/ipv4/*", "kernel/net/ipv4/netfilter/*",
	"kernel/net/ipv6/*", "kernel/net/ipv6/netfilter/*",
	"kernel/net/bridge/*", "kernel/net/bridge/netfilter/*",
	"kernel/net/8021q/*", "kernel/net/sched/*", "kernel/net/sctp/*",
	"kernel/net/key/*", "kernel/net/xfrm/*", "kernel/net/l2tp/*",
	"kernel/net/netlink/*", "kernel/net/packet/*", "kernel/net/unix/*",
	"kernel/drivers/net/veth", "kernel/drivers/net/dummy", "kernel/drivers/net/ifb", "kernel/drivers/net/vrf",
	"kernel/drivers/net/macvlan", "kernel/drivers/net/macvtap", "kernel/drivers/net/tap", "kernel/drivers/net/geneve",
	"kernel/drivers/net/ipvlan/*", "kernel/drivers/net/vxlan/*", "kernel/drivers/net/bonding/*",
	"kernel/drivers/net/wireguard/*", "kernel/drivers/net/ppp/*",
	// Algorithms that VPNs ask for by name, and the interface to them.
	"kernel/crypto/af_alg", "kernel/crypto/algif_*", "kernel/crypto/authenc", "kernel/crypto/authencesn",
	"kernel/crypto/echainiv", "kernel/crypto/seqiv", "kernel/crypto/gcm", "kernel/crypto/ghash-generic",
	"kernel/crypto/ccm", "kernel/crypto/ctr", "kernel/crypto/cbc", "kernel/crypto/cmac", "kernel/crypto/xcbc",
	"kernel/crypto/chacha20poly1305", "kernel/crypto/crc32c_generic",
	"kernel/drivers/block/loop",
	"kernel/fs/binfmt_misc", "kernel/fs/ext4/*", "kernel/fs/squashfs/*", "kernel/fs/isofs/*", "kernel/fs/fat/*",
	"kernel/fs/nls/nls_ascii", "kernel/fs/nls/nls_cp437", "kernel/fs/nls/nls_iso8859-1", "kernel/fs/nls/nls_utf8",
}

// isOnDemand says whether a module file, relative to the module directory, matches onDemand.
func isOnDemand(file string) bool {
	stem, _, _ := strings.Cut(file, ".ko")
	return slices.ContainsFunc(onDemand, func(pattern string) bool {
		matches, _ := path.Match(pattern, stem)
		return matches
	})
}

// addOnDemand appends the modules that match onDemand and the modules that they depend on.
// neededFor maps each module to those of onDemand for which it is needed.
func (r *resolver) addOnDemand() (neededFor map[string][]string, err error) {
	var demanded []string
	for name, e := range r.entries {
		if isOnDemand(e.path) && !r.builtin[name] {
			demanded = append(demanded, name)
		}
	}
	slices.Sort(demanded)
	neededFor = map[string][]string{}
	for _, name := range demanded {
		if err := r.add(name); err != nil {
			return nil, err
		}
		// A line of modules.dep lists all direct and indirect dependencies.
		for _, need := range append([]string{name}, r.entries[name].deps...) {
			neededFor[need] = append(neededFor[need], name)
		}
	}
	return neededFor, nil
}

// readAliases returns for each module the other names by which the kernel may ask for it, from
// modules.alias in dir. Without that file there are none.
func readAliases(dir string, seen witnesses) (map[string][]string, error) {
	b, err := readListFile(filepath.Join(dir, "modules.alias"), seen)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	aliases, err := parseAliases(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("read modules.alias in %s: %w", dir, err)
	}
	return aliases, nil
}

// parseAliases parses modules.alias, whose lines are "alias PATTERN NAME".
func parseAliases(r io.Reader) (map[string][]string, error) {
	aliases := map[string][]string{}
	err := eachLine(r, func(line string) error {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != "alias" {
			return fmt.Errorf("not an alias: %.100q", line)
		}
		if len(line) > maxNameBytes {
			return fmt.Errorf("alias of %d bytes", len(line))
		}
		name := strings.ReplaceAll(fields[2], "-", "_")
		aliases[name] = append(aliases[name], fields[1])
		return nil
	})
	return aliases, err
}

// compress returns the module as it is stored in the initramfs. Modules that few containers
// load are compressed, because all guests have them in memory.
func compress(module []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(module); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
