package create

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/specconv"
)

// wallsOf decides about the restrictions of the container's network. Annotations come from
// whoever may start containers, with Kubernetes any user of the cluster, so they weaken a
// restriction only if the administrator allows that.
func wallsOf(settings *config.Config, plan *specconv.Plan) (*machine.Walls, error) {
	if names := plan.Weakened.Annotations(); len(names) > 0 && !settings.UnsafeAnnotations {
		return nil, weakens(names)
	}
	w := &machine.Walls{
		Spoofing:        spoofingOf(plan.Guest.Process.Capabilities),
		AcceptUncarried: settings.UncarriedFilters == "accept" || plan.Weakened.Uncarried,
	}
	if settings.AntiSpoofing == "off" || plan.Weakened.Spoofing {
		w.Spoofing = network.SpoofAll
	}
	return w, nil
}

// weakens returns the error for annotations that the settings do not allow.
func weakens(names []string) error {
	return fmt.Errorf("annotations: %s: annotations may not weaken isolation here: take it away, or set unsafe_annotations = true in the settings",
		strings.Join(names, ", "))
}

// spoofingOf returns what a process with these capabilities could send on the host. An exec'd
// process with more capabilities does not get more, because the host cannot see which process
// in a guest has sent a frame.
func spoofingOf(c *specs.LinuxCapabilities) network.Spoofing {
	if c == nil {
		return network.SpoofNothing
	}
	has := func(name string) bool {
		for _, set := range [][]string{c.Bounding, c.Effective, c.Permitted, c.Inheritable, c.Ambient} {
			if slices.Contains(set, name) {
				return true
			}
		}
		return false
	}
	switch {
	case has("CAP_NET_ADMIN"):
		return network.SpoofAll
	case has("CAP_NET_RAW"):
		return network.SpoofAddresses
	}
	return network.SpoofNothing
}
