package main

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/config"
	"github.com/huskvm/husk/network"
	"github.com/huskvm/husk/specconv"
)

func TestWalls(t *testing.T) {
	caps := func(names ...string) *specs.LinuxCapabilities { return &specs.LinuxCapabilities{Bounding: names} }
	both := specconv.Weakened{Spoofing: true, Uncarried: true}
	for name, c := range map[string]struct {
		settings config.Config
		caps     *specs.LinuxCapabilities
		weakened specconv.Weakened
		forging  network.Forging
		accept   bool
		refused  string
	}{
		"no capabilities":   {forging: network.ForgeNothing},
		"few":               {caps: caps("CAP_CHOWN"), forging: network.ForgeNothing},
		"raw":               {caps: caps("CAP_NET_RAW"), forging: network.ForgeAddresses},
		"raw, ambient only": {caps: &specs.LinuxCapabilities{Ambient: []string{"CAP_NET_RAW"}}, forging: network.ForgeAddresses},
		"admin":             {caps: caps("CAP_NET_RAW", "CAP_NET_ADMIN"), forging: network.ForgeAll},
		"off":               {settings: config.Config{AntiSpoofing: "off", UncarriedFilters: "accept"}, forging: network.ForgeAll, accept: true},
		"annotated":         {weakened: both, refused: "org.huskvm.anti_spoofing, org.huskvm.uncarried_filters: annotations may not weaken"},
		"allowed":           {settings: config.Config{UnsafeAnnotations: true}, weakened: both, forging: network.ForgeAll, accept: true},
	} {
		plan := &specconv.Plan{Weakened: c.weakened, Guest: &specs.Spec{Process: &specs.Process{Capabilities: c.caps}}}
		got, err := wallsOf(&c.settings, plan)
		if c.refused != "" {
			if err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v, want %q", name, err, c.refused)
			}
			continue
		}
		if err != nil || got.Forging != c.forging || got.AcceptUncarried != c.accept {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}
