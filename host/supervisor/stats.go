package supervisor

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/protocol"
)

// stats is the "data" object of a stats event, in the form of runc's `events --stats`
// (types/events.go), which its readers parse.
type stats struct {
	CPU struct {
		Usage struct {
			Total  uint64 `json:"total"` // nanoseconds
			Kernel uint64 `json:"kernel"`
			User   uint64 `json:"user"`
		} `json:"usage"`
		Throttling struct {
			Periods          uint64 `json:"periods,omitempty"`
			ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
			ThrottledTime    uint64 `json:"throttledTime,omitempty"` // nanoseconds
		} `json:"throttling"`
	} `json:"cpu"`
	Memory struct {
		Usage memoryEntry       `json:"usage"`
		Swap  memoryEntry       `json:"swap"`
		Raw   map[string]uint64 `json:"raw,omitempty"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"`
	} `json:"pids"`
	Blkio   struct{} `json:"blkio"`
	Hugetlb struct{} `json:"hugetlb"`
}

type memoryEntry struct {
	Limit   uint64 `json:"limit"` // bytes copied
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

// maxMemoryStats bounds how many lines of memory.stat are accepted from the guest.
const maxMemoryStats = 256

// Stats returns what the container uses, by the guest's count.
func (s *service) Stats(ctx context.Context, _ *control.StatsRequest) (*control.StatsResponse, error) {
	if err := s.record.allowed(state.Events); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := s.agent.Stats(ctx, &protocol.StatsRequest{ContainerId: s.id})
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(convertStats(r))
	if err != nil {
		return nil, fmt.Errorf("encode stats: %w", err)
	}
	return &control.StatsResponse{Stats: b}, nil
}

func convertStats(r *protocol.StatsResponse) *stats {
	const nanosPerMicro = 1000
	st := &stats{}
	st.CPU.Usage.Total = r.CpuUsageUsec * nanosPerMicro
	st.CPU.Usage.Kernel = r.CpuSystemUsec * nanosPerMicro
	st.CPU.Usage.User = r.CpuUserUsec * nanosPerMicro
	st.CPU.Throttling.Periods = r.CpuPeriods
	st.CPU.Throttling.ThrottledPeriods = r.CpuThrottledPeriods
	st.CPU.Throttling.ThrottledTime = r.CpuThrottledUsec * nanosPerMicro
	st.Memory.Usage = memoryEntry{Limit: r.MemoryLimit, Usage: r.MemoryUsage, Max: r.MemoryMaxUsage, Failcnt: r.MemoryFailcnt}
	st.Memory.Swap = memoryEntry{Limit: r.SwapLimit, Usage: r.SwapUsage}
	if len(r.MemoryStat) <= maxMemoryStats {
		st.Memory.Raw = r.MemoryStat
	}
	st.Pids.Current = r.PidsCurrent
	st.Pids.Limit = r.PidsLimit
	return st
}
