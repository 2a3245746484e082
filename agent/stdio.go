package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// copySize is how much a stream carries at a time, in bytes: as much as a pipe
// holds by default.
const copySize = 64 << 10

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copySize); return &b }}

// stdio joins one process's ends of stdin, stdout and stderr, or its terminal, and
// of the descriptors it is passed, to the host's streams. Each stream has goroutines of
// its own, so that none waits for another's reader.
type stdio struct {
	files map[streamID]*end
	// late: what others write to an output after the process has ended is passed on,
	// too. It is set before anything is attached.
	late bool

	// progress counts the bytes that went to the host.
	progress atomic.Int64
	// ended is closed when the process has.
	ended chan struct{}

	mu       sync.Mutex
	attached map[streamID]stream
	outputs  []*output
	released bool
}

// streamID names a stream of a process.
type streamID struct {
	kind   protocol.StreamKind
	number byte // of a descriptor that is passed, 0 for stdio
}

// end is this side of a stream.
type end struct {
	*os.File
	// both: the file is that of an input and an output. The output closes it, and
	// endInput tells the process that there is no more input, where that can be.
	both     bool
	endInput func()
}

// closeInput ends what the process reads.
func (e *end) closeInput() {
	switch {
	case !e.both:
		_ = e.Close()
	case e.endInput != nil:
		e.endInput()
	}
}

// newStdio takes the files over, and those of the descriptors. With a console the
// first three are nil.
func newStdio(stdin, stdout, stderr, console *os.File, passed []*descriptor) (*stdio, error) {
	s := &stdio{
		files:    make(map[streamID]*end),
		ended:    make(chan struct{}),
		attached: make(map[streamID]stream),
	}
	all := map[streamID]*end{
		{kind: protocol.StreamStdin}: {File: stdin}, {kind: protocol.StreamStdout}: {File: stdout}, {kind: protocol.StreamStderr}: {File: stderr},
	}
	if console != nil {
		// A terminal has no end of its input: there ^D is a byte.
		terminal := &end{File: console, both: true}
		all = map[streamID]*end{{kind: protocol.StreamStdin}: terminal, {kind: protocol.StreamStdout}: terminal}
	}
	for _, d := range passed {
		d.addTo(all)
	}
	for id, e := range all {
		if e.File == nil {
			continue
		}
		// The end of the process must be able to wake a read, and the rest of a
		// pipe is read without waiting: both need a file the poller knows.
		if err := e.SetReadDeadline(time.Time{}); err != nil && id.kind != protocol.StreamStdin {
			return nil, fmt.Errorf("prepare stream %q: %w", id.kind, err)
		}
		s.files[id] = e
	}
	return s, nil
}

// attach accepts a stream, that is, answers its header, and starts its copying.
// It owns conn unless it returns an error.
func (s *stdio) attach(id streamID, conn stream) error {
	f, err := s.claim(id, conn)
	if err != nil {
		return err
	}
	// Attached already when the host learns of it: a Wait after that sees it.
	if err := protocol.WriteStreamAck(conn, nil); err != nil {
		_ = conn.Close()
	}
	if id.kind == protocol.StreamStdin {
		go s.copyIn(conn, f)
		return nil
	}
	o := s.outputOf(conn)
	go o.watchReader()
	go o.run()
	return nil
}

// claim makes sure that a stream is attached once only.
func (s *stdio) claim(id streamID, conn stream) (*end, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[id]
	switch {
	case s.released:
		return nil, errors.New("attach stream: the process has ended and was waited for")
	case f == nil:
		return nil, fmt.Errorf("attach stream: the process has no stream %q, %d", id.kind, id.number)
	case s.attached[id] != nil:
		return nil, fmt.Errorf("attach stream: stream %q, %d is attached already", id.kind, id.number)
	}
	s.attached[id] = conn
	if id.kind != protocol.StreamStdin {
		s.outputs = append(s.outputs, &output{stdio: s, id: id, conn: conn, file: f.File, done: make(chan struct{})})
		select {
		case <-s.ended: // end has passed: its wake-up is due here
			_ = f.SetReadDeadline(time.Unix(1, 0))
		default:
		}
	}
	return f, nil
}

func (s *stdio) outputOf(conn stream) *output {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.outputs {
		if o.conn == conn {
			return o
		}
	}
	return nil
}

// end is called once, when the process has ended: it lets the outputs run to the
// end of what the process has written and ends its input.
func (s *stdio) end() {
	close(s.ended)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.outputs {
		_ = o.file.SetReadDeadline(time.Unix(1, 0)) // wakes a read that waits
	}
	for id, f := range s.files {
		// Of an output as well it is still to be drained.
		if id.kind == protocol.StreamStdin && !f.both {
			_ = f.Close() // wakes a write that waits
		}
	}
}

// drain waits until the attached outputs have passed on all that was written
// before end. A reader on the host that takes nothing for stall ends the wait,
// not the stream: its data still arrives if it wakes up.
func (s *stdio) drain(stall time.Duration, cancel <-chan struct{}) {
	s.mu.Lock()
	outputs := s.outputs
	s.mu.Unlock()
	timer := time.NewTimer(stall)
	defer timer.Stop()
	seen := s.progress.Load()
	for _, o := range outputs {
		for done := false; !done; {
			select {
			case <-o.done:
				done = true
			case <-cancel:
				return
			case <-timer.C:
				now := s.progress.Load()
				if now == seen {
					return
				}
				seen = now
				timer.Reset(stall)
			}
		}
	}
}

// held are the outputs that go on after drain.
func (s *stdio) held() []*protocol.HeldOutput {
	if !s.late {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*protocol.HeldOutput
	for _, o := range s.outputs {
		select {
		case <-o.done:
			if !o.heldOpen {
				continue
			}
		default: // its reader has stalled
		}
		all = append(all, &protocol.HeldOutput{Kind: uint32(o.id.kind), Number: uint32(o.id.number), Carried: uint64(o.carried.Load())})
	}
	return all
}

// release closes what no stream was ever attached to.
func (s *stdio) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = true
	for id, f := range s.files {
		if f.both {
			id.kind = protocol.StreamStdout // which closes the file for both
		}
		if s.attached[id] == nil {
			_ = f.Close()
		}
	}
}

// copyIn feeds the process from the host.
func (s *stdio) copyIn(conn stream, f *end) {
	defer func() { _ = conn.Close() }()
	ended := make(chan struct{})
	go func() {
		select {
		case <-s.ended:
			// The host learns that nobody reads any more, even while it sends nothing.
			_ = conn.CloseWrite()
		case <-ended:
		}
	}()
	defer close(ended)

	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	if _, err := io.CopyBuffer(writerOnly{f.File}, readerOnly{conn}, *buf); err != nil {
		// The process closed its stdin. What the host still sends is thrown away:
		// left unread it would block the host's writer.
		_ = conn.CloseWrite()
		_, _ = io.CopyBuffer(writerOnly{io.Discard}, readerOnly{conn}, *buf)
		return
	}
	f.closeInput()
}

// readerOnly and writerOnly hide the methods that would make io.CopyBuffer
// allocate buffers of its own.
type (
	readerOnly struct{ io.Reader }
	writerOnly struct{ io.Writer }
)

// output is stdout or stderr of one process, or its terminal's output.
type output struct {
	stdio *stdio
	id    streamID
	conn  stream
	file  *os.File
	// carried counts the bytes that went to the host.
	carried atomic.Int64
	// sent is set when the host's end-of-file is on its way.
	sent atomic.Bool
	// done is closed when all that the process has written went to the host.
	done     chan struct{}
	heldOpen bool // others can still write; set before done is closed
}

// watchReader closes the process's pipe when the host's reader goes away, so
// that the process gets SIGPIPE, or with a terminal SIGHUP, as it would from a
// pipe without a VM between.
func (o *output) watchReader() {
	_, _ = io.Copy(io.Discard, o.conn)
	if !o.sent.Load() {
		_ = o.file.Close()
	}
	_ = o.conn.Close()
}

func (o *output) run() {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	err := o.copyOut(*buf)
	held := errors.Is(err, errHeldOpen)
	if held && o.stdio.late {
		o.heldOpen = true
		close(o.done)
		_ = o.file.SetReadDeadline(time.Time{})
		_ = o.copyOut(*buf)
		held = false
	} else {
		defer close(o.done)
	}
	o.sent.Store(true)
	_ = o.conn.CloseWrite()
	if held {
		go o.discard()
		return
	}
	_ = o.file.Close()
}

// discard reads what a descendant still writes. Nobody wants it any more, but closing
// the pipe would kill that descendant with SIGPIPE.
func (o *output) discard() {
	_ = o.file.SetReadDeadline(time.Time{})
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	_, _ = io.CopyBuffer(writerOnly{io.Discard}, readerOnly{o.file}, *buf)
	_ = o.file.Close()
}

// errHeldOpen says that a pipe is empty, and open in a process that lives on.
var errHeldOpen = errors.New("output is still open")

// copyOut passes everything on until end-of-file, or until the process has ended
// and the pipe is empty.
func (o *output) copyOut(buf []byte) error {
	for {
		n, err := o.file.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return o.copyRest(buf)
		}
		if n > 0 {
			if err := o.send(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err // io.EOF, or a terminal's EIO
		}
	}
}

// copyRest passes on what the pipe holds now.
func (o *output) copyRest(buf []byte) error {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return err
	}
	for {
		n, err := readNow(raw, buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return errHeldOpen
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		}
		if err := o.send(buf[:n]); err != nil {
			return err
		}
	}
}

func (o *output) send(b []byte) error {
	n, err := o.conn.Write(b)
	o.carried.Add(int64(n))
	o.stdio.progress.Add(int64(n))
	return err
}

// readNow reads without waiting.
func readNow(raw syscall.RawConn, buf []byte) (int, error) {
	var n int
	var readErr error
	err := raw.Control(func(fd uintptr) {
		for {
			n, readErr = unix.Read(int(fd), buf)
			if !errors.Is(readErr, unix.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return 0, err
	}
	return n, readErr
}
