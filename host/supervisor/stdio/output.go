package stdio

import (
	"errors"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"github.com/huskvm/husk/protocol"
)

// output is one output of the guest's process that is being copied.
type output struct {
	id   streamID
	to   io.Writer
	from Stream

	mu      sync.Mutex
	moved   *sync.Cond
	carried uint64 // bytes copied
	stopped bool   // nothing more is copied here
	rest    bool   // because another process goes on
}

func newOutput(id streamID, to io.Writer, from Stream) *output {
	o := &output{id: id, to: to, from: from}
	o.moved = sync.NewCond(&o.mu)
	return o
}

// copy copies the output to its end. It returns false if another process goes on with the rest.
func (o *output) copy() bool {
	buf := make([]byte, chunk)
	for {
		n, err := o.from.Read(buf)
		if n > 0 {
			_, werr := o.to.Write(buf[:n])
			if werr != nil {
				err = werr
			}
			o.note(n, false, false)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.note(0, true, true)
			return false
		}
		if err != nil {
			// If writing fails nobody reads here any more. Closing the stream makes the agent
			// close its pipe, and the process gets SIGPIPE, as from a pipe of its own.
			o.from.Close()
			o.note(0, true, false)
			return true
		}
	}
}

func (o *output) note(n int, stopped, rest bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.carried += uint64(n)
	o.stopped, o.rest = stopped, rest
	o.moved.Broadcast()
}

// reach waits until this many bytes are written, or no more will be. rest says whether another
// process goes on with the rest.
func (o *output) reach(bytes uint64) (rest bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.carried < bytes && !o.stopped {
		o.moved.Wait()
	}
	return o.rest
}

// Held is an output that other processes can still write to after its process has ended.
type Held struct {
	Kind    protocol.StreamKind
	Number  byte
	Carried uint64 // bytes that include everything the process has written
}

// Settle waits until everything that the process has written is written. Outputs that are not
// in held end with the process.
func (r *Relay) Settle(held []Held) {
	for _, o := range r.carried {
		bytes := uint64(math.MaxUint64)
		for _, h := range held {
			if o.id == (streamID{h.Kind, h.Number}) {
				bytes = h.Carried
			}
		}
		o.reach(bytes)
	}
}

// HandOver stops copying outputs that have not ended, and calls pass for each, so that another
// process goes on, because this one is about to end. It stops between two writes and waits for
// the present one. An output that cannot be passed on, such as a terminal, ends.
func (r *Relay) HandOver(pass func(from Stream, to *os.File) error) error {
	var errs []error
	for _, o := range r.carried {
		to, isFile := o.to.(*os.File)
		from, stops := o.from.(interface{ SetReadDeadline(t time.Time) error })
		if !isFile || !stops {
			continue
		}
		if err := from.SetReadDeadline(time.Unix(1, 0)); err != nil {
			continue // it has ended and is closed
		}
		if rest := o.reach(math.MaxUint64); !rest {
			continue
		}
		errs = append(errs, from.SetReadDeadline(time.Time{}), pass(o.from, to))
	}
	return errors.Join(errs...)
}
