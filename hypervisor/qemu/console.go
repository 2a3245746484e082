package qemu

import (
	"io"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// ring keeps the last bytes written to it. The guest writes what goes in: it may
// write without end, and cost the host no more than the ring.
type ring struct {
	mu   sync.Mutex
	buf  []byte
	next int
	full bool
}

func newRing(size int) *ring { return &ring{buf: make([]byte, size)} }

// Write never fails and never blocks.
func (r *ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(p)
	if len(p) >= len(r.buf) {
		p = p[len(p)-len(r.buf):]
		r.next, r.full = 0, false
	}
	for len(p) > 0 {
		c := copy(r.buf[r.next:], p)
		p = p[c:]
		r.next += c
		if r.next == len(r.buf) {
			r.next, r.full = 0, true
		}
	}
	return n, nil
}

// text returns what the ring holds as printable text.
func (r *ring) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.full {
		return printable(r.buf[:r.next])
	}
	return printable(r.buf[r.next:]) + printable(r.buf[:r.next])
}

// printable drops control characters but newline and tab, and what is not UTF-8:
// the text ends on a terminal or in a log, and the guest must not write there
// anything but text. Format characters go too: they reorder text on a terminal.
func printable(b []byte) string {
	var s strings.Builder
	s.Grow(len(b))
	for len(b) > 0 {
		c, n := utf8.DecodeRune(b)
		b = b[n:]
		switch {
		case c == utf8.RuneError && n == 1:
		case c == '\n' || c == '\t':
			s.WriteRune(c)
		case unicode.IsControl(c) || unicode.Is(unicode.Cf, c) || c == '\u2028' || c == '\u2029':
		default:
			s.WriteRune(c)
		}
	}
	return s.String()
}

// drain copies r into the ring until r ends, then signals done.
func (r *ring) drain(src io.Reader, done *sync.WaitGroup) {
	defer done.Done()
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		//nolint:errcheck // a ring's Write never fails.
		r.Write(buf[:n])
		if err != nil {
			return // end of file, or the deadline set once the vmm was reaped
		}
	}
}

// lastLines returns the last n non-empty lines of text, joined by "; ", at most
// limit bytes of them.
func lastLines(text string, n, limit int) string {
	lines := strings.FieldsFunc(text, func(c rune) bool { return c == '\n' })
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	s := strings.Join(lines, "; ")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[len(s)-limit:], "")
	}
	return s
}

// panicLine returns the kernel's last "Kernel panic" line in text, without its
// time stamp, or "". It is the guest's word, good for a message and no more.
func panicLine(text string) string {
	i := strings.LastIndex(text, "Kernel panic - not syncing")
	if i < 0 {
		return ""
	}
	line, _, _ := strings.Cut(text[i:], "\n")
	if len(line) > 200 {
		line = strings.ToValidUTF8(line[:200], "")
	}
	return line
}
