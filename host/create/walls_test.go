package create

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/hypervisor"
)

func TestWalls(t *testing.T) {
	caps := func(names ...string) *specs.LinuxCapabilities { return &specs.LinuxCapabilities{Bounding: names} }
	both := specconv.Weakened{Spoofing: true, Uncarried: true}
	for name, c := range map[string]struct {
		settings config.Config
		caps     *specs.LinuxCapabilities
		weakened specconv.Weakened
		spoofing network.Spoofing
		accept   bool
		refused  string
	}{
		"no capabilities":   {spoofing: network.SpoofNothing},
		"few":               {caps: caps("CAP_CHOWN"), spoofing: network.SpoofNothing},
		"raw":               {caps: caps("CAP_NET_RAW"), spoofing: network.SpoofAddresses},
		"raw, ambient only": {caps: &specs.LinuxCapabilities{Ambient: []string{"CAP_NET_RAW"}}, spoofing: network.SpoofAddresses},
		"admin":             {caps: caps("CAP_NET_RAW", "CAP_NET_ADMIN"), spoofing: network.SpoofAll},
		"off":               {settings: config.Config{AntiSpoofing: "off", UncarriedFilters: "accept"}, spoofing: network.SpoofAll, accept: true},
		"annotated":         {weakened: both, refused: "org.huskvm.anti_spoofing, org.huskvm.uncarried_filters: annotations may not weaken"},
		"allowed":           {settings: config.Config{UnsafeAnnotations: true}, weakened: both, spoofing: network.SpoofAll, accept: true},
	} {
		plan := &specconv.Plan{Weakened: c.weakened, Guest: &specs.Spec{Process: &specs.Process{Capabilities: c.caps}}}
		got, err := wallsOf(&c.settings, plan)
		if c.refused != "" {
			if err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v, want %q", name, err, c.refused)
			}
			continue
		}
		if err != nil || got.Spoofing != c.spoofing || got.AcceptUncarried != c.accept {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

// TestMayEmulate: emulation does not isolate, so an annotation cannot choose it where there is
// KVM.
func TestMayEmulate(t *testing.T) {
	for name, c := range map[string]struct {
		settings  config.Config
		annotated string
		host      hypervisor.Accel
		refused   bool
	}{
		"auto, host has KVM":   {config.Config{Accel: "auto"}, "tcg", hypervisor.KVM, true},
		"auto, host has none":  {config.Config{Accel: "auto"}, "tcg", hypervisor.TCG, false},
		"kvm":                  {config.Config{Accel: "kvm"}, "tcg", hypervisor.TCG, true},
		"tcg":                  {config.Config{Accel: "tcg"}, "tcg", hypervisor.KVM, false},
		"allowed":              {config.Config{Accel: "kvm", UnsafeAnnotations: true}, "tcg", hypervisor.KVM, false},
		"annotation asks more": {config.Config{Accel: "auto"}, "kvm", hypervisor.KVM, false},
		"no annotation":        {config.Config{Accel: "auto"}, "", hypervisor.KVM, false},
	} {
		probe := func(hypervisor.Accel) (hypervisor.Accel, string, error) { return c.host, "", nil }
		err := mayEmulate(&c.settings, &specconv.Plan{VM: specconv.VM{Accel: c.annotated}}, probe)
		if (err != nil) != c.refused || err != nil && !strings.Contains(err.Error(), "org.huskvm.accel: annotations may not weaken") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
