package machine

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/detached"
	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/protocol"
)

// maxPolicy bounds the part of a request that describes the packet filter, in bytes.
const maxPolicy = 2 << 20

// policy reads what the container's network namespace says about packets: what the guest gets,
// and what a guest cannot have. Its descriptors were opened while paths could be trusted.
type policy struct {
	sysctls *os.File // /proc/sys/net
	procNet *os.File // /proc/net of the container's network namespace
	spec    map[string]string
	fresh   func() (network.Sysctls, error)
	ports   string // ip_local_port_range before husk has changed it
}

// openPolicy is called in the container's network namespace, before the shadow is entered. spec
// are the settings of config.json, which have precedence. isNew: nobody can have changed the
// namespace yet.
func openPolicy(spec map[string]string, isNew bool) (*policy, error) {
	p := &policy{spec: spec}
	var err error
	if p.sysctls, err = openDetached("/proc/sys/net"); err != nil {
		return nil, err
	}
	if p.procNet, err = openDetached("/proc/self/net"); err != nil {
		p.sysctls.Close()
		return nil, err
	}
	p.fresh = sync.OnceValues(func() (network.Sysctls, error) {
		if isNew {
			return network.ReadSysctls(p.sysctls) // this takes a quarter of the time
		}
		return network.FreshSysctls(p.sysctls)
	})
	go func() { _ = p.settle() }() // in parallel with the guest's start; a later call gets the error
	return p, nil
}

// settle waits until it is known which settings a new namespace has.
func (p *policy) settle() error {
	_, err := p.fresh()
	return err
}

// openDetached opens a directory as the root of a detached mount, from which ".." does not lead
// to the rest of the host's /proc.
func openDetached(dir string) (*os.File, error) {
	f, err := detached.Open(dir)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		// This fails in a container whose engine has mounted over parts of /proc.
		return os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	return f, err
}

// carried is the policy in the form of the agent's request.
type carried struct {
	sysctls []*protocol.Sysctl
	rules   []*protocol.NftablesMessage
	// uncarried names what a guest cannot have.
	uncarried []string
}

func (p *policy) read(interfaces []network.Interface) (*carried, error) {
	c := &carried{}
	fresh, err := p.fresh()
	if err != nil {
		return nil, err
	}
	now, err := network.ReadSysctls(p.sysctls)
	if err != nil {
		return nil, err
	}
	if network.AreReserved(now) {
		now.SetPorts(p.ports)
	}
	c.sysctls = now.Carry(fresh, interfaces, p.sysctls, p.spec)
	rules, uncarried, err := network.ReadRules()
	if err != nil {
		return nil, err
	}
	size := 0
	for _, m := range rules {
		size += len(m.Attributes)
		c.rules = append(c.rules, &protocol.NftablesMessage{Type: uint32(m.Type), Family: uint32(m.Family), Attributes: m.Attributes})
	}
	if size > maxPolicy {
		c.rules = nil
		uncarried = append(uncarried, fmt.Sprintf("the nftables ruleset has %d bytes, %d at most can be told to the guest", size, maxPolicy))
	}
	legacy, err := network.LegacyFilters(p.procNet)
	if err != nil {
		return nil, err
	}
	other, err := network.OtherFilters(p.procNet)
	if err != nil {
		return nil, err
	}
	c.uncarried = append(append(uncarried, legacy...), other...)
	return c, nil
}

// reservePorts changes the local ports of sockets in the namespace, so that they differ from
// the guest's.
func (p *policy) reservePorts() error {
	before, err := network.ReservePorts(p.sysctls)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOENT) {
		return nil // husk runs in a container whose /proc/sys is read-only
	}
	if before != "" {
		p.ports = before
	}
	return err
}

// errUncarried is returned for packet filters that the guest cannot have.
var errUncarried = errors.New("the network namespace has packet filters that a virtual machine can't have and would pass by")

func refusal(uncarried []string) error {
	return fmt.Errorf("%w: %s: take them away, or accept that with uncarried_filters = \"accept\" in the settings or, where they allow it, the annotation %s=accept",
		errUncarried, strings.Join(uncarried, "; "), specconv.AnnotationUncarried)
}
