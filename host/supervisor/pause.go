package supervisor

import (
	"sync"

	"github.com/huskvm/husk/host/state"
)

// pause remembers, while the container is paused, the status to go back to and who waits for
// that.
type pause struct {
	// mu guards the fields below. It is held only to read or write them.
	mu      sync.Mutex
	before  state.Status
	resumed chan struct{} // closed by resume; nil if the container was never paused
}

func newPause() *pause { return &pause{} }

// begin is called after the container has been paused.
func (p *pause) begin(before state.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before, p.resumed = before, make(chan struct{})
}

// status returns the status that resume sets.
func (p *pause) status() state.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.before
}

// end wakes everybody who waits. It has an effect only once per pause.
func (p *pause) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.resumed)
}

// over returns a channel that is closed when the container, which is paused now, has been
// resumed.
func (p *pause) over() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.resumed
}
