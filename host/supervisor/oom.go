package supervisor

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/protocol"
)

// followInterval is the shortest time between two calls to the guest.
const followInterval = time.Second

// oomWatch counts the processes in the guest that were killed for lack of memory, and reports
// them to whoever waits for events, to the host's log and to the host's cgroup.
type oomWatch struct {
	id     string // of the container
	agent  protocol.AgentService
	log    *logrus.Logger
	over   <-chan struct{} // closed when the container has ended
	record *record         // for the memory limit
	ram    int64           // of the machine, in bytes
	host   *hostOOM
	failed *failed

	started sync.Once
	doubted sync.Once // a false claim is logged once

	// mu guards the fields below. It is held only to read or write them.
	mu    sync.Mutex
	kills uint64
	more  chan struct{} // closed when kills grows; nil while nobody waits
}

// follow notes each kill from the container's first process on, until the connection breaks.
// Only the first call does anything.
func (w *oomWatch) follow() {
	w.started.Do(func() {
		go func() {
			var seen uint64
			for {
				resp, err := w.agent.AwaitOOM(context.Background(), &protocol.AwaitOOMRequest{ContainerId: w.id, Seen: seen})
				if err != nil || resp.Kills <= seen {
					return // the container is gone, or the guest sends nonsense
				}
				seen = resp.Kills
				w.note(seen)
				// The next answer includes all kills until then.
				select {
				case <-time.After(followInterval):
				case <-w.over:
				}
			}
		}()
	})
}

// note reports new kills, and returns when the host has been told. The guest is not believed if
// the host knows better.
func (w *oomWatch) note(kills uint64) {
	limit := w.record.memoryLimit()
	may := w.ram
	if limit > 0 {
		may = min(may, limit)
	}
	if err := w.host.doubt(may); err != nil {
		w.doubted.Do(func() {
			w.log.WithError(err).Warn("the guest says that a process was killed for want of memory, which cannot be")
		})
		return
	}
	w.mu.Lock()
	if kills > w.kills {
		w.kills = kills
		if w.more != nil {
			close(w.more)
			w.more = nil
		}
	}
	w.mu.Unlock()
	short := fmt.Sprintf("of the %d MiB of its virtual machine, which has no more", w.ram>>20)
	if limit > 0 {
		short = fmt.Sprintf("of its limit of %d bytes", limit)
	}
	w.failed.tellKills(kills, short)
	if err := w.host.tell(); err != nil {
		w.log.WithError(err).Warn("a process was killed for want of memory in the guest, which the host's cgroup does not tell")
	}
}

// await waits until there have been more kills than seen, or until the container has ended, and
// returns the number of kills.
func (w *oomWatch) await(ctx context.Context, seen uint64) (kills uint64, err error) {
	for {
		w.mu.Lock()
		if w.more == nil {
			w.more = make(chan struct{})
		}
		kills, more := w.kills, w.more
		w.mu.Unlock()
		if kills > seen {
			return kills, nil
		}
		select {
		case <-more:
		case <-w.over:
			return seen, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
