// Package stdio carries bytes between the descriptors a supervisor or exec
// process was started with and the streams of its process in the guest, and
// hands on the signals that reach it. A stream that stalls stalls nobody else.
package stdio

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// Stream is one direction of a guest process's stdio.
type Stream = protocol.HalfCloser

// Dial opens the stream of one kind, of the process's descriptor with that number;
// 0 is its stdio.
type Dial func(ctx context.Context, kind protocol.StreamKind, number byte) (Stream, error)

// chunk is the size of a copy, in bytes: two thirds of a default pipe's
// capacity would already do; larger saves emulated wake-ups.
const chunk = 128 << 10

// Relay is stdio under way.
type Relay struct {
	outputs sync.WaitGroup
	done    chan struct{}

	streams []Stream
	closers []io.Closer
	carried []*output
}

// Pipes relays descriptors 0, 1 and 2 themselves: they are the container's
// stdio, whatever they are. null is /dev/null, open for writing: an output that
// has ended is replaced by it, because descriptor 1 or 2 must never become free
// for another file to take. The caller opened it while it had a path to trust.
// passed are relayed beside them.
func Pipes(ctx context.Context, dial Dial, null *os.File, passed []Descriptor) (*Relay, error) {
	r := &Relay{done: make(chan struct{})}
	ids := []streamID{{kind: protocol.StreamStdin}, {kind: protocol.StreamStdout}, {kind: protocol.StreamStderr}}
	if err := r.dialAll(ctx, dial, append(ids, streamsOf(passed)...)); err != nil {
		return nil, fmt.Errorf("relay stdio: %w", err)
	}
	go r.input(r.streams[0], os.Stdin)
	r.outputs.Add(2)
	go r.output(r.carry(ids[1], os.Stdout, r.streams[1]), os.Stdout, null)
	go r.output(r.carry(ids[2], os.Stderr, r.streams[2]), os.Stderr, null)
	r.relayPassed(dial, passed, r.streams[len(ids):]) //nolint:contextcheck // it outlives the call
	go r.finish()
	return r, nil
}

// dialAll opens the streams at the same time: one after the other each would
// wait for the guest's answer.
func (r *Relay) dialAll(ctx context.Context, dial Dial, ids []streamID) error {
	r.streams = make([]Stream, len(ids))
	errs := make([]error, len(ids))
	var all sync.WaitGroup
	for i, id := range ids {
		all.Go(func() {
			s, err := dial(ctx, id.kind, id.number)
			if errs[i] = err; err == nil {
				r.streams[i] = s
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			r.Abort()
			return err // one line: the others failed for the same reason
		}
	}
	return nil
}

// Terminal relays one pty: input and output only. passed are relayed beside it.
func Terminal(ctx context.Context, dial Dial, pty *PTY, passed []Descriptor) (*Relay, error) {
	r := &Relay{done: make(chan struct{}), closers: []io.Closer{pty}}
	ids := []streamID{{kind: protocol.StreamStdin}, {kind: protocol.StreamStdout}}
	if err := r.dialAll(ctx, dial, append(ids, streamsOf(passed)...)); err != nil {
		return nil, fmt.Errorf("relay terminal: %w", err)
	}
	go r.input(r.streams[0], pty)
	r.outputs.Add(1)
	out := r.carry(ids[1], pty, r.streams[1])
	go func() {
		defer r.outputs.Done()
		out.copy()
	}()
	r.relayPassed(dial, passed, r.streams[len(ids):]) //nolint:contextcheck // it outlives the call
	go r.finish()
	return r, nil
}

func (r *Relay) input(to Stream, from io.Reader) {
	// A guest that no longer reads its stdin is no error: the rest is not wanted.
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, chunk))
	_ = to.CloseWrite()
}

// carry notes an output that is to be copied.
func (r *Relay) carry(id streamID, to io.Writer, from Stream) *output {
	o := newOutput(id, to, from)
	r.carried = append(r.carried, o)
	return o
}

func (r *Relay) output(o *output, to, null *os.File) {
	defer r.outputs.Done()
	if !o.copy() {
		return // it goes on elsewhere
	}
	// Whoever reads the other end learns now that this output has ended. When it
	// fails the reader learns it at exit.
	_ = unix.Dup3(int(null.Fd()), int(to.Fd()), 0)
}

func (r *Relay) finish() {
	r.outputs.Wait()
	close(r.done)
}

// Done is closed when every output has ended and its last byte is written.
func (r *Relay) Done() <-chan struct{} { return r.done }

// Abort gives up what has not been carried yet.
func (r *Relay) Abort() {
	for _, s := range r.streams {
		if s != nil { // one that could not be opened
			s.Close()
		}
	}
	for _, c := range r.closers {
		c.Close()
	}
}
