package netconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/nftables"
	"github.com/huskvm/husk/protocol"
)

// sysctlDir shows each thread the settings of its own network namespace.
const sysctlDir = "/proc/sys/net"

// Policy is the part of a network namespace's configuration that says what happens to packets:
// settings and packet filter. The zero value is empty. It must not be used by several
// goroutines at once.
type Policy struct {
	before map[string]string // values that changed settings had before
	rules  []nftables.Message
}

// Prepare sets the settings that exist already, so that interfaces that are added later inherit
// them. Some settings for all interfaces, such as disable_ipv6, would remove addresses if they
// were set after them.
func (p *Policy) Prepare(nsPath string, sysctls []*protocol.Sysctl) error {
	if len(sysctls) == 0 {
		return nil
	}
	return inNamespace(nsPath, func() error {
		_, err := p.applySysctls(sysctls) // Apply reports settings that cannot be set
		return err
	})
}

// Apply sets the settings and the packet filter in the network namespace at nsPath, in place of
// those of the last call. An empty nsPath means the caller's namespace. unset lists the
// settings that this kernel does not have or refuses. After an error settings may have changed.
func (p *Policy) Apply(nsPath string, sysctls []*protocol.Sysctl, messages []*protocol.NftablesMessage) (unset []string, err error) {
	if len(sysctls) == 0 && len(messages) == 0 && len(p.before) == 0 && len(p.rules) == 0 {
		return nil, nil
	}
	rules := make([]nftables.Message, 0, len(messages))
	for _, m := range messages {
		rules = append(rules, nftables.Message{Type: uint8(m.Type), Family: uint8(m.Family), Attributes: m.Attributes})
	}
	err = inNamespace(nsPath, func() error {
		if err := nftables.Replace(p.rules, rules); err != nil {
			return err
		}
		// Some settings exist only after rules have loaded their modules.
		unset, err = p.applySysctls(sysctls)
		return err
	})
	if err != nil {
		// The next call removes these tables, whether or not the kernel has made all of them.
		// Tables keeps each once: the host may try the same rules many times.
		p.rules = nftables.Tables(slices.Concat(p.rules, rules))
		return nil, err
	}
	p.rules = rules
	return unset, nil
}

func (p *Policy) applySysctls(sysctls []*protocol.Sysctl) (unset []string, err error) {
	if p.before == nil {
		p.before = map[string]string{}
	}
	for name, value := range p.before {
		if slices.ContainsFunc(sysctls, func(s *protocol.Sysctl) bool { return s.Path == name }) {
			continue
		}
		// The setting may have gone with its interface.
		if err := writeSysctl(name, value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		delete(p.before, name)
	}
	for _, s := range sysctls {
		if !fs.ValidPath(s.Path) {
			return nil, fmt.Errorf("set %s: not a path below %s", s.Path, sysctlDir)
		}
		now, err := os.ReadFile(path.Join(sysctlDir, s.Path))
		if err == nil && strings.TrimSpace(string(now)) == s.Value {
			continue
		}
		if err == nil {
			err = writeSysctl(s.Path, s.Value)
		}
		if err != nil {
			unset = append(unset, s.Path)
			continue
		}
		if _, known := p.before[s.Path]; !known {
			p.before[s.Path] = strings.TrimSpace(string(now))
		}
	}
	return unset, nil
}

// allowIPv6 allows IPv6 on an interface if one of the addresses is an IPv6 address. The
// namespace's default may be to forbid it.
func allowIPv6(nsPath, link string, addresses []string) error {
	if !slices.ContainsFunc(addresses, func(a string) bool { return strings.Contains(a, ":") }) {
		return nil
	}
	return inNamespace(nsPath, func() error {
		name := path.Join("ipv6/conf", link, "disable_ipv6")
		now, err := os.ReadFile(path.Join(sysctlDir, name))
		if errors.Is(err, fs.ErrNotExist) || (err == nil && strings.TrimSpace(string(now)) == "0") {
			return nil
		}
		if err != nil {
			return err
		}
		return writeSysctl(name, "0")
	})
}

func writeSysctl(name, value string) error {
	return os.WriteFile(path.Join(sysctlDir, name), []byte(value), 0)
}

// inNamespace runs f on a thread in the network namespace at nsPath. The thread ends
// afterwards, so no other code runs in that namespace.
func inNamespace(nsPath string, f func() error) error {
	if nsPath == "" {
		return f()
	}
	ns, err := os.Open(nsPath)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Go's runtime never ends the main thread. While this goroutine is locked to it,
			// the next one runs on another thread.
			defer runtime.UnlockOSThread()
			done <- inNamespace(nsPath, f)
			return
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
