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

// sysctlDir is where the kernel shows each thread the settings of its own namespace.
const sysctlDir = "/proc/sys/net"

// Policy is what the host's network namespace says about packets, beside interfaces
// and routes: settings and packet filter. The zero value is nothing. It is not safe for
// concurrent use.
type Policy struct {
	before map[string]string // what a setting that was changed had before
	rules  []nftables.Message
}

// Prepare sets what is there already, so that interfaces that come find what they are
// to inherit: what is written for all interfaces after they have their addresses, such
// as disable_ipv6, takes these away.
func (p *Policy) Prepare(nsPath string, sysctls []*protocol.Sysctl) error {
	if len(sysctls) == 0 {
		return nil
	}
	return inNamespace(nsPath, func() error {
		_, err := p.applySysctls(sysctls) // Apply says what can't be set
		return err
	})
}

// Apply makes the policy that of the network namespace at nsPath, in the place of the
// one before; an empty nsPath means the caller's own. It returns the settings that this
// kernel does not have or take. On error the settings may have changed.
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
		// Some settings come with the modules that rules load.
		unset, err = p.applySysctls(sysctls)
		return err
	})
	if err != nil {
		// Whichever tables there are now, the next call removes them. Each is kept once:
		// the host may try the same rules again and again.
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
		// Gone with its interface, perhaps.
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

// allowIPv6 lets an interface have IPv6 addresses, if any of these is one: by the
// namespace's default it may have none.
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

// inNamespace runs f on a thread in the network namespace at nsPath, which ends with
// it: no other code ever runs there.
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
			// The runtime never ends the main thread. While this goroutine holds it,
			// the next is on another.
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
