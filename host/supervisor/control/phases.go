package control

import (
	"time"

	"github.com/huskvm/husk/host/timings"
)

// FromPhases returns phases as messages.
func FromPhases(phases []timings.Phase) []*Phase {
	messages := make([]*Phase, 0, len(phases))
	for _, p := range phases {
		messages = append(messages, &Phase{Process: p.Process, Name: p.Name, Began: int64(p.Began), Took: int64(p.Took)})
	}
	return messages
}

// Phases returns messages as phases.
func Phases(messages []*Phase) []timings.Phase {
	phases := make([]timings.Phase, 0, len(messages))
	for _, m := range messages {
		phases = append(phases, timings.Phase{Process: m.Process, Name: m.Name, Began: time.Duration(m.Began), Took: time.Duration(m.Took)})
	}
	return phases
}
