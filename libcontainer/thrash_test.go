package libcontainer

import "testing"

func TestThrashes(t *testing.T) {
	const limit = 64 << 20
	for name, c := range map[string]struct {
		used, active, inactive uint64
		want                   bool
	}{
		"at the limit, nothing left":     {limit, 4096, 258048, true},
		"just below it":                  {limit - 12288, 0, 299008, true},
		"a cache to reclaim":             {limit, 1 << 20, 8 << 20, false},
		"far from the limit":             {limit / 2, 0, 0, false},
		"all of it anonymous, but below": {limit - 1<<20, 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			stat := map[string]uint64{"active_file": c.active, "inactive_file": c.inactive, "anon": c.used}
			equal(t, name, thrashes(limit, c.used, stat), c.want)
		})
	}
}
