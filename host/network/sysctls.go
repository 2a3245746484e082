package network

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// maxSysctl bounds one value, in bytes. It is the kernel's page size.
const maxSysctl = 4096

// Sysctls are settings of a network namespace, by their path below /proc/sys/net.
type Sysctls map[string]string

// ReadSysctls reads the settings of the calling thread's network namespace. dir is
// /proc/sys/net of any mount of proc: the kernel shows the settings of the thread that reads.
func ReadSysctls(dir *os.File) (Sysctls, error) {
	all := Sysctls{}
	if err := all.read(int(dir.Fd()), ""); err != nil {
		return nil, fmt.Errorf("read network settings: %w", err)
	}
	return all, nil
}

func (s Sysctls) read(dir int, below string) error {
	fd, err := unix.Openat(dir, cmp.Or(below, "."), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) && below != "" {
		return nil // the interface has gone
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), below)
	entries, err := f.ReadDir(-1)
	f.Close()
	if err != nil {
		return err
	}
	buf := make([]byte, maxSysctl)
	for _, e := range entries {
		name := path.Join(below, e.Name())
		if e.IsDir() && strings.HasPrefix(e.Name(), tapPrefix) {
			continue // a tap of husk's; skipping these saves a fifth of the files
		}
		if e.IsDir() {
			if err := s.read(dir, name); err != nil {
				return err
			}
			continue
		}
		if v, err := readSysctl(dir, name, buf); err == nil {
			s[name] = v
		} // or a secret that is not set, or a file that can only be written
	}
	return nil
}

func readSysctl(dir int, name string, buf []byte) (string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

// FreshSysctls returns the settings of a new network namespace.
func FreshSysctls(dir *os.File) (Sysctls, error) {
	type result struct {
		all Sysctls
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread() // the main thread never ends: see inNamespace
			all, err := FreshSysctls(dir)
			done <- result{all, err}
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("read network settings: make a namespace: %w", err)}
			return
		}
		all, err := ReadSysctls(dir)
		done <- result{all, err}
	}()
	r := <-done
	return r.all, r.err
}

// notCarried are settings, by the end of their path, that a guest does not get: they are about
// the host's own use of the namespace, or follow from other things that the guest gets, or make
// addresses that the anti-spoofing filter would have to know, or are secret.
var notCarried = []string{
	"/addr_gen_mode", "/use_tempaddr", "/stable_secret", "/mtu", "/flush", "ipv4/tcp_fastopen_key", "ipv4/fib_multipath_hash_seed",
}

// Carry returns the settings that the guest has to apply, by their names of sysctl(8): those of
// its interfaces and of the namespace that differ from a new namespace's. Settings in
// config.json (spec) are left out. dir is as in ReadSysctls.
func (s Sysctls) Carry(fresh Sysctls, interfaces []Interface, dir *os.File, spec map[string]string) []*protocol.Sysctl {
	known := map[string]bool{"all": true, "default": true, "lo": true}
	for _, i := range interfaces {
		known[i.Name] = true
	}
	set := map[string]bool{}
	for name := range spec {
		set[specPath(name)] = true
	}
	var out []*protocol.Sysctl
	for name, value := range s {
		kind, iface, setting := ofInterface(name)
		if iface != "" {
			ofAll := path.Join(kind, "all", setting)
			if !known[iface] || set[ofAll] {
				continue
			}
			// Writing the setting for all interfaces writes it for each one.
			if value == s.before(fresh, name) && s[ofAll] == fresh[ofAll] {
				continue
			}
		} else if value == s.before(fresh, name) {
			continue
		}
		if set[name] || slices.ContainsFunc(notCarried, func(end string) bool { return strings.HasSuffix("/"+name, end) || name == end }) ||
			strings.HasPrefix(name, "netfilter/nf_log/") || !mayWrite(dir, name) {
			continue
		}
		out = append(out, &protocol.Sysctl{Path: name, Value: value})
	}
	slices.SortFunc(out, func(a, b *protocol.Sysctl) int {
		return cmp.Or(cmp.Compare(rankSysctl(a.Path), rankSysctl(b.Path)), cmp.Compare(a.Path, b.Path))
	})
	return out
}

// before returns the value that a setting has in a new namespace. For an interface that is the
// value for new interfaces.
func (s Sysctls) before(fresh Sysctls, name string) string {
	if v, found := fresh[name]; found {
		return v
	}
	if kind, iface, setting := ofInterface(name); iface != "" {
		if v, found := fresh[path.Join(kind, "default", setting)]; found {
			return v
		}
	}
	return s[name] // unknown, so it counts as unchanged
}

// ofInterface splits a path such as "ipv4/conf/eth0/rp_filter". iface is empty for other
// settings.
func ofInterface(name string) (kind, iface, setting string) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || (parts[1] != "conf" && parts[1] != "neigh") {
		return "", "", ""
	}
	return path.Join(parts[0], parts[1]), parts[2], parts[3]
}

// rankSysctl gives the order of writing: settings for all interfaces first, which change each
// one, then those for new interfaces.
func rankSysctl(name string) int {
	switch _, iface, _ := ofInterface(name); iface {
	case "":
		return 0
	case "all":
		return 1
	case "default":
		return 2
	}
	return 3
}

// specPath turns a name such as "net.ipv4.conf.eth0/1.rp_filter" into a path below
// /proc/sys/net.
func specPath(name string) string {
	p := strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
	return strings.TrimPrefix(p, "net/")
}

func mayWrite(dir *os.File, name string) bool {
	const write = 0o200
	var st unix.Stat_t
	return unix.Fstatat(int(dir.Fd()), name, &st, 0) == nil && fs.FileMode(st.Mode)&write != 0
}
