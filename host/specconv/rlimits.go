package specconv

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// InheritRlimits gives a process of the guest's the limits, of those that it is not
// given by its spec, that it would inherit on the host.
func InheritRlimits(p *specs.Process, callers []specs.POSIXRlimit) {
	all := slices.Clone(p.Rlimits)
	for _, l := range callers {
		if !slices.ContainsFunc(all, func(own specs.POSIXRlimit) bool { return own.Type == l.Type }) {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b specs.POSIXRlimit) int { return strings.Compare(a.Type, b.Type) })
	p.Rlimits = all
}
