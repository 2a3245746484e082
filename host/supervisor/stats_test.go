package supervisor

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/huskvm/husk/protocol"
)

// FuzzConvertStats: whatever a guest claims to use, events prints JSON of bounded size.
func FuzzConvertStats(f *testing.F) {
	seed, err := proto.Marshal(&protocol.StatsResponse{MemoryUsage: 5, MemoryStat: map[string]uint64{"anon": 1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &protocol.StatsResponse{}
		if proto.Unmarshal(b, r) != nil {
			return
		}
		st := convertStats(r)
		if len(st.Memory.Raw) > maxMemoryStats {
			t.Errorf("%d lines of memory.stat", len(st.Memory.Raw))
		}
		if _, err := json.Marshal(st); err != nil {
			t.Error(err)
		}
	})
}
