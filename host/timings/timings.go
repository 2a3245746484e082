// Package timings measures where the time of a verb goes, from the command line to the
// container's first instruction. All processes of a verb use one clock, the host's
// CLOCK_MONOTONIC, so that their phases fit into one table.
package timings

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// Phase is a period of time in one process.
type Phase struct {
	Process string        `json:"process"` // cli, supervisor or agent
	Name    string        `json:"name"`
	Began   time.Duration `json:"began"` // on the host's CLOCK_MONOTONIC
	Took    time.Duration `json:"took"`
}

// Log holds the phases that one process has measured. A nil Log measures nothing. All methods
// may be called by many goroutines at once.
type Log struct {
	process string

	mu     sync.Mutex
	last   time.Duration // end of the last lap
	phases []Phase
}

// New returns a log whose first lap begins now.
func New(process string) *Log { return &Log{process: process, last: Now()} }

// NewFromStart returns a log for a process that has just entered its main function. The first
// lap is the time of execve and of Go's own start.
func NewFromStart(process string) *Log {
	l := New(process)
	var cpu unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &cpu); err == nil {
		// The process has not waited yet, so its CPU time is the time that has passed.
		took := time.Duration(cpu.Nano())
		l.phases = append(l.phases, Phase{Process: process, Name: "process start", Began: l.last - took, Took: took})
	}
	return l
}

// Now returns the host's CLOCK_MONOTONIC, or 0 if there is none.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Lap records the time since the last lap under a name.
func (l *Log) Lap(name string) {
	if l == nil {
		return
	}
	now := Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phases = append(l.phases, Phase{Process: l.process, Name: name, Began: l.last, Took: now - l.last})
	l.last = now
}

// Begin starts a phase that runs in parallel with the laps. The caller calls end.
func (l *Log) Begin(name string) (end func()) {
	if l == nil {
		return func() {}
	}
	began := Now()
	return func() { l.Add(Phase{Process: l.process, Name: name, Began: began, Took: Now() - began}) }
}

// Add adds phases that were measured elsewhere.
func (l *Log) Add(phases ...Phase) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phases = append(l.phases, phases...)
}

// Phases returns the phases by the time at which they began.
func (l *Log) Phases() []Phase {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	phases := slices.Clone(l.phases)
	slices.SortStableFunc(phases, func(a, b Phase) int { return int(a.Began - b.Began) })
	return phases
}

// Print writes a table of the phases with times in milliseconds. The first column is the time
// since the first phase began.
func (l *Log) Print(w io.Writer) error {
	phases := l.Phases()
	if len(phases) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "at ms\ttook ms\t  process\t  phase\n")
	for _, p := range phases {
		fmt.Fprintf(t, "%.1f\t%.1f\t  %s\t  %s\n", ms(p.Began-phases[0].Began), ms(p.Took), p.Process, p.Name)
	}
	return t.Flush()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

type key struct{}

// With returns a context in which Lap records in l.
func With(ctx context.Context, l *Log) context.Context { return context.WithValue(ctx, key{}, l) }

// From returns the context's log; nil if it has none.
func From(ctx context.Context) *Log {
	l, _ := ctx.Value(key{}).(*Log)
	return l
}

// Lap records a lap in the context's log.
func Lap(ctx context.Context, name string) { From(ctx).Lap(name) }
