package qemu

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// ring keeps the last bytes written to it. The guest may write without end, and the host uses
// no more memory than the ring has.
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

// text returns the content of the ring as printable text.
func (r *ring) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.full {
		return printable(r.buf[:r.next])
	}
	return printable(r.buf[r.next:]) + printable(r.buf[:r.next])
}

// printable removes control characters except newline and tab, format characters, and what is
// not UTF-8. The text is shown on a terminal or in a log, where the guest must not be able to
// do anything but show text; format characters would reorder it.
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

// drain copies src into dst, which never fails, until src ends, and then calls done.
func drain(dst io.Writer, src io.Reader, done *sync.WaitGroup) {
	defer done.Done()
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		//nolint:errcheck // as above
		dst.Write(buf[:n])
		if err != nil {
			return // end of file, or the deadline that is set when the vmm was reaped
		}
	}
}

// lastLines returns the last n lines of text that are not empty, joined by "; ", at most limit
// bytes.
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

// panicLine returns the last line of text that has the kernel's "Kernel panic", without its
// time stamp; "" if there is none. The guest has written it, so it may be shown but not relied
// on.
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

// noTimerText is what the guest's kernel prints when it has no timer: see hypervisor.ErrNoTimer.
// It is a warning, and the kernel's command line asks for those.
const noTimerText = "disabling apic timer"

// finder calls found once, when the bytes written to it contain text.
type finder struct {
	text  string
	found func()
	end   []byte // of what was written so far, shorter than text
	over  bool
}

// Write never fails.
func (f *finder) Write(p []byte) (int, error) {
	if f.over {
		return len(p), nil
	}
	seen := append(f.end, p...)
	if bytes.Contains(seen, []byte(f.text)) {
		f.over = true
		f.end = nil
		f.found()
		return len(p), nil
	}
	f.end = slices.Clone(seen[max(0, len(seen)-len(f.text)+1):])
	return len(p), nil
}
