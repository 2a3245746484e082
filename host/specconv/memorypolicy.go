package specconv

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// MemoryPolicyModes and MemoryPolicyFlags are the names that the spec defines.
var (
	MemoryPolicyModes = []specs.MemoryPolicyModeType{
		specs.MpolBind, specs.MpolDefault, specs.MpolInterleave, specs.MpolLocal, specs.MpolPreferred,
		specs.MpolPreferredMany, specs.MpolWeightedInterleave,
	}
	MemoryPolicyFlags = []specs.MemoryPolicyFlagType{
		specs.MpolFNumaBalancing, specs.MpolFRelativeNodes, specs.MpolFStaticNodes,
	}
)

// maxMemoryNode is the highest number of a memory node that any Linux kernel supports.
const maxMemoryNode = 1023

// validateMemoryPolicy uses runc's words. Only the guest's kernel knows which nodes exist.
func validateMemoryPolicy(p *specs.LinuxMemoryPolicy) error {
	if p == nil {
		return nil
	}
	if !slices.Contains(MemoryPolicyModes, p.Mode) {
		return fieldErrorf("linux.memoryPolicy.mode", "invalid memory policy mode %s", quote(p.Mode))
	}
	for i, flag := range p.Flags {
		if !slices.Contains(MemoryPolicyFlags, flag) {
			return fieldErrorf(index("linux.memoryPolicy.flags", i), "invalid memory policy flag %s", quote(flag))
		}
	}
	nodes, err := countNumbers(p.Nodes, maxMemoryNode)
	if err != nil {
		return fieldErrorf("linux.memoryPolicy.nodes", "invalid memory policy nodes %s: not a list such as 0-2,7 of numbers up to %d", quote(p.Nodes), maxMemoryNode)
	}
	switch p.Mode {
	case specs.MpolDefault, specs.MpolLocal:
		if nodes > 0 {
			return fieldErrorf("linux.memoryPolicy.nodes", "memory policy mode requires 0 nodes but got %d", nodes)
		}
	case specs.MpolPreferred:
	default:
		if nodes == 0 {
			return fieldErrorf("linux.memoryPolicy.nodes", "memory policy mode requires at least one node but got 0")
		}
	}
	return nil
}
