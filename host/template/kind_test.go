package template

import "testing"

// TestFits: a template of another size fits, and one of another husk, guest or host does not.
func TestFits(t *testing.T) {
	here := Kind{Husk: "husk", Machine: "machine", Host: "6.1", Guest: "guest", VMM: "qemu", Accel: "tcg", CPU: "cpu", MemoryMiB: 1024, VCPUs: 1, NICs: 2}
	for name, c := range map[string]struct {
		change func(k *Kind)
		fits   bool
	}{
		"the same":       {func(*Kind) {}, true},
		"another size":   {func(k *Kind) { k.MemoryMiB, k.VCPUs, k.NICs, k.Machine = 2048, 2, 4, "other" }, true},
		"another tenant": {func(k *Kind) { k.Tenant = "a" }, true},
		"another husk":   {func(k *Kind) { k.Husk = "new" }, false},
		"another guest":  {func(k *Kind) { k.Guest = "new" }, false},
		"another vmm":    {func(k *Kind) { k.VMM = "new" }, false},
		"another kernel": {func(k *Kind) { k.Host = "6.2" }, false},
		"another cpu":    {func(k *Kind) { k.CPU = "new" }, false},
		"another accel":  {func(k *Kind) { k.Accel = "kvm" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			k := here
			c.change(&k)
			if got := here.Fits(k); got != c.fits {
				t.Errorf("fits: %v, want %v", got, c.fits)
			}
		})
	}
}
