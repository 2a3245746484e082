package specconv

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// InheritRlimits gives a process of the guest those limits of the caller that its spec does not
// set, as it would inherit them on the host.
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
