// Package stdio copies bytes between the descriptors with which a supervisor or exec process
// was started and the streams of its process in the guest, and forwards signals. A stream that
// stalls does not hold up another.
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

// Stream is a stream of a guest process.
type Stream = protocol.HalfCloser

// Dial opens the stream of a kind for the process's descriptor with this number; 0 means its
// stdio.
type Dial func(ctx context.Context, kind protocol.StreamKind, number byte) (Stream, error)

// chunk is the size of a copy buffer, in bytes. Two thirds of a pipe's default size would do; a
// larger one saves wake-ups under emulation.
const chunk = 128 << 10

// Relay copies the stdio of one process.
type Relay struct {
	outputs sync.WaitGroup
	done    chan struct{}

	streams []Stream
	closers []io.Closer
	carried []*output
}

// Pipes relays descriptors 0, 1 and 2 of this process, which are the container's stdio. null is
// /dev/null, open for writing: it replaces an output that has ended, because another file must
// never get the number 1 or 2. The caller has opened it while paths could be trusted. passed
// are relayed too.
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

// dialAll opens the streams at the same time. One after the other each would wait for the
// guest's answer.
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
			return err // one line; the others have failed for the same reason
		}
	}
	return nil
}

// Terminal relays one pty, which has only an input and an output. passed are relayed too.
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
	// If the guest no longer reads its stdin, the rest is dropped without an error.
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, chunk))
	_ = to.CloseWrite()
}

// carry adds an output to copy.
func (r *Relay) carry(id streamID, to io.Writer, from Stream) *output {
	o := newOutput(id, to, from)
	r.carried = append(r.carried, o)
	return o
}

func (r *Relay) output(o *output, to, null *os.File) {
	defer r.outputs.Done()
	if !o.copy() {
		return // another process goes on
	}
	// The reader of the other end learns now that this output has ended. If this fails, the
	// reader learns it when the process exits.
	_ = unix.Dup3(int(null.Fd()), int(to.Fd()), 0)
}

func (r *Relay) finish() {
	r.outputs.Wait()
	close(r.done)
}

// Done returns a channel that is closed when every output has ended and its last byte is
// written.
func (r *Relay) Done() <-chan struct{} { return r.done }

// Abort drops output that is not written yet.
func (r *Relay) Abort() {
	for _, s := range r.streams {
		if s != nil { // nil if it could not be opened
			s.Close()
		}
	}
	for _, c := range r.closers {
		c.Close()
	}
}
