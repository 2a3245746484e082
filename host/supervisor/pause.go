package supervisor

import (
	"sync"

	"github.com/huskvm/husk/host/state"
)

// pause is what is remembered while the container is paused: the status to go back to, and
// who waits for that.
type pause struct {
	// mu guards the fields below for the moment in which they are read or written.
	mu      sync.Mutex
	before  state.Status
	resumed chan struct{} // closed by resume; nil: never paused
}

func newPause() *pause { return &pause{} }

// begin is called when the container has been paused.
func (p *pause) begin(before state.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before, p.resumed = before, make(chan struct{})
}

// status is what the container goes back to.
func (p *pause) status() state.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.before
}

// end wakes who waits. Only what is paused is resumed, and once.
func (p *pause) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.resumed)
}

// over is closed when the container that is paused now has been resumed.
func (p *pause) over() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.resumed
}
