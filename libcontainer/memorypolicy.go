package libcontainer

import (
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// memoryPolicy is what set_mempolicy(2) takes.
type memoryPolicy struct {
	Mode  int         `json:"mode"` // mode and flags
	Nodes unix.CPUSet `json:"nodes"`
}

var memoryPolicyModes = map[specs.MemoryPolicyModeType]int{
	specs.MpolDefault:            unix.MPOL_DEFAULT,
	specs.MpolPreferred:          unix.MPOL_PREFERRED,
	specs.MpolBind:               unix.MPOL_BIND,
	specs.MpolInterleave:         unix.MPOL_INTERLEAVE,
	specs.MpolLocal:              unix.MPOL_LOCAL,
	specs.MpolPreferredMany:      unix.MPOL_PREFERRED_MANY,
	specs.MpolWeightedInterleave: unix.MPOL_WEIGHTED_INTERLEAVE,
}

var memoryPolicyFlags = map[specs.MemoryPolicyFlagType]int{
	specs.MpolFStaticNodes:   unix.MPOL_F_STATIC_NODES,
	specs.MpolFRelativeNodes: unix.MPOL_F_RELATIVE_NODES,
	specs.MpolFNumaBalancing: unix.MPOL_F_NUMA_BALANCING,
}

func newMemoryPolicy(p *specs.LinuxMemoryPolicy) (*memoryPolicy, error) {
	if p == nil {
		return nil, nil
	}
	mode, ok := memoryPolicyModes[p.Mode]
	if !ok {
		return nil, fmt.Errorf("invalid memory policy mode %q", p.Mode)
	}
	policy := &memoryPolicy{Mode: mode}
	for _, name := range p.Flags {
		flag, ok := memoryPolicyFlags[name]
		if !ok {
			return nil, fmt.Errorf("invalid memory policy flag %q", name)
		}
		policy.Mode |= flag
	}
	if p.Nodes == "" {
		return policy, nil
	}
	var err error
	if policy.Nodes, err = numbers(p.Nodes); err != nil {
		return nil, fmt.Errorf("invalid memory policy nodes %q: %w", p.Nodes, err)
	}
	return policy, nil
}

// numbers parses a list such as "0-2,7". Numbers must be below 1024.
func numbers(list string) (set unix.CPUSet, err error) {
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 10) // 10 bits: below 1024, the size of a CPUSet
		if err != nil {
			return set, err
		}
		last, err := strconv.ParseUint(to, 10, 10)
		if err != nil {
			return set, err
		}
		for n := first; n <= last; n++ {
			set.Set(int(n))
		}
	}
	return set, nil
}

// newAffinity returns the CPUs that an exec'd process may run on; nil means all. The spec's
// "initial" affinity is ignored: the process is forked into the container's cgroup at once, so
// there is no time in which it would apply.
func newAffinity(a *specs.CPUAffinity) (*unix.CPUSet, error) {
	if a == nil || a.Final == "" {
		return nil, nil
	}
	set, err := numbers(a.Final)
	if err != nil {
		return nil, fmt.Errorf("invalid CPU affinity %q: %w", a.Final, err)
	}
	return &set, nil
}
