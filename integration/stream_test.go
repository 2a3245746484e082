//go:build integration

package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// stream collects what arrives on a pipe or pty, and lets tests wait for it.
type stream struct {
	mu     sync.Mutex
	text   strings.Builder
	more   chan struct{} // closed and replaced at each arrival
	closed bool
}

func newStream(r *os.File) *stream {
	s := &stream{more: make(chan struct{})}
	go func() {
		defer r.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := r.Read(buf)
			s.add(buf[:n], err != nil)
			if err != nil {
				return // EOF of a pipe, or EIO of a pty whose other end is gone
			}
		}
	}()
	return s
}

func (s *stream) add(b []byte, eof bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(b)
	s.closed = s.closed || eof
	close(s.more)
	s.more = make(chan struct{})
}

// String returns what has arrived so far. A nil stream is empty.
func (s *stream) String() string {
	if s == nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

var errNoEnd = errors.New("no end of file")

// until waits for a condition on what has arrived.
func (s *stream) until(limit time.Duration, done func(text string, eof bool) bool) error {
	deadline := time.After(limit)
	for {
		s.mu.Lock()
		text, eof, more := s.text.String(), s.closed, s.more
		s.mu.Unlock()
		switch {
		case done(text, eof):
			return nil
		case eof:
			return io.ErrUnexpectedEOF
		}
		select {
		case <-more:
		case <-deadline:
			return errNoEnd
		}
	}
}

func (s *stream) waitEOF(limit time.Duration) error {
	err := s.until(limit, func(_ string, eof bool) bool { return eof })
	if err != nil {
		return fmt.Errorf("%w after %v", err, limit)
	}
	return nil
}

// expect waits until the text has arrived.
func (s *stream) expect(t *testing.T, text string) {
	t.Helper()
	s.expectN(t, text, 1)
}

// expectN waits until the text has arrived n times.
func (s *stream) expectN(t *testing.T, text string, n int) {
	t.Helper()
	err := s.until(testTimeout/2, func(all string, _ bool) bool { return strings.Count(all, text) >= n })
	if err != nil {
		t.Fatalf("waiting for %q: %v; so far: %q", text, err, s)
	}
}
