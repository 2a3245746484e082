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

// copySize is the size of a copy buffer, in bytes: the default size of a pipe.
const copySize = 64 << 10

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copySize); return &b }}

// stdio joins the stdin, stdout and stderr of one process, or its terminal, and its passed
// descriptors to the host's streams. Each stream has goroutines of its own, so that a slow
// reader of one does not hold up another.
type stdio struct {
	files map[streamID]*end
	// late: what other processes write to an output after this one has ended is passed on too.
	// It is set before any stream is attached.
	late bool

	// progress counts the bytes that have been sent to the host.
	progress atomic.Int64
	// ended is closed when the process has ended.
	ended chan struct{}

	mu       sync.Mutex
	attached map[streamID]stream
	outputs  []*output
	released bool
}

// streamID identifies a stream of a process.
type streamID struct {
	kind   protocol.StreamKind
	number byte // of a passed descriptor; 0 for stdio
}

// end is the guest's end of a stream.
type end struct {
	*os.File
	// both: the file is used for an input and an output. The output closes it. endInput tells
	// the process that no more input comes, if the file has a way to do so.
	both     bool
	endInput func()
}

// closeInput ends what the process can read.
func (e *end) closeInput() {
	switch {
	case !e.both:
		_ = e.Close()
	case e.endInput != nil:
		e.endInput()
	}
}

// newStdio takes over the files and those of the descriptors. With a console the first three
// are nil.
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
		// A terminal has no end of its input: ^D is a byte that a process interprets.
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
		// The file must be registered with the poller: when the process ends, a pending read
		// has to be woken, and the rest of a pipe is read without waiting.
		if err := e.SetReadDeadline(time.Time{}); err != nil && id.kind != protocol.StreamStdin {
			return nil, fmt.Errorf("prepare stream %q: %w", id.kind, err)
		}
		s.files[id] = e
	}
	return s, nil
}

// attach answers the header of a stream and starts copying. It owns conn unless it returns an
// error.
func (s *stdio) attach(id streamID, conn stream) error {
	f, err := s.claim(id, conn)
	if err != nil {
		return err
	}
	// The stream counts as attached before the host gets the answer, so that a Wait which
	// follows drains it.
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

// claim makes sure that each stream is attached only once.
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
		case <-s.ended: // end has been called, so this read has to be woken here
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

// end is called once, when the process has ended. It ends the process's input, and lets the
// outputs run until everything that the process has written is sent.
func (s *stdio) end() {
	close(s.ended)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.outputs {
		_ = o.file.SetReadDeadline(time.Unix(1, 0)) // wakes a pending read
	}
	for id, f := range s.files {
		// An end that is also an output still has to be drained.
		if id.kind == protocol.StreamStdin && !f.both {
			_ = f.Close() // wakes a pending write
		}
	}
}

// drain waits until the attached outputs have sent everything that was written before end. If
// the host takes nothing for the time stall, drain returns. The stream goes on, and its data
// arrives if the host reads later.
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

// held returns the outputs that go on after drain because other processes hold them open.
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
		default: // the host has stopped reading
		}
		all = append(all, &protocol.HeldOutput{Kind: uint32(o.id.kind), Number: uint32(o.id.number), Carried: uint64(o.carried.Load())})
	}
	return all
}

// release closes the files to which no stream was attached.
func (s *stdio) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = true
	for id, f := range s.files {
		if f.both {
			id.kind = protocol.StreamStdout // the output closes the file
		}
		if s.attached[id] == nil {
			_ = f.Close()
		}
	}
}

// copyIn copies from the host to the process.
func (s *stdio) copyIn(conn stream, f *end) {
	defer func() { _ = conn.Close() }()
	ended := make(chan struct{})
	go func() {
		select {
		case <-s.ended:
			// The host learns that the process no longer reads, also while it sends nothing.
			_ = conn.CloseWrite()
		case <-ended:
		}
	}()
	defer close(ended)

	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	if _, err := io.CopyBuffer(writerOnly{f.File}, readerOnly{conn}, *buf); err != nil {
		// The process has closed its stdin. What the host still sends is discarded. If it
		// stayed unread, the host's writer would block.
		_ = conn.CloseWrite()
		_, _ = io.CopyBuffer(writerOnly{io.Discard}, readerOnly{conn}, *buf)
		return
	}
	f.closeInput()
}

// readerOnly and writerOnly hide the methods with which io.CopyBuffer would allocate a buffer
// of its own.
type (
	readerOnly struct{ io.Reader }
	writerOnly struct{ io.Writer }
)

// output is the stdout or stderr of one process, or the output of its terminal.
type output struct {
	stdio *stdio
	id    streamID
	conn  stream
	file  *os.File
	// carried counts the bytes that have been sent to the host.
	carried atomic.Int64
	// sent is set when the end-of-file has been sent to the host.
	sent atomic.Bool
	// done is closed when everything that the process wrote has been sent to the host.
	done     chan struct{}
	heldOpen bool // other processes can still write to it; set before done is closed
}

// watchReader closes the process's pipe when the host's reader goes away. The process then gets
// SIGPIPE, or SIGHUP with a terminal, as it would without a VM.
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

// discard reads and drops what a descendant of the process still writes. Nobody reads it, but
// closing the pipe would kill the descendant with SIGPIPE.
func (o *output) discard() {
	_ = o.file.SetReadDeadline(time.Time{})
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	_, _ = io.CopyBuffer(writerOnly{io.Discard}, readerOnly{o.file}, *buf)
	_ = o.file.Close()
}

// errHeldOpen means that a pipe is empty and another process still holds it open.
var errHeldOpen = errors.New("output is still open")

// copyOut copies to the host until end-of-file, or until the process has ended and the pipe is
// empty.
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
			return err // io.EOF, or EIO of a terminal
		}
	}
}

// copyRest copies what the pipe holds now.
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
