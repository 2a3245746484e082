package qemu

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestRingKeepsTheTail(t *testing.T) {
	all := ""
	r := newRing(10)
	for _, s := range []string{"", "abc", "defghi", "j", "k", "lmnopqrstu", "0123456789abcdefghijkl", "z"} {
		n, err := r.Write([]byte(s))
		if n != len(s) || err != nil {
			t.Fatalf("Write(%q) = %d, %v", s, n, err)
		}
		all += s
		want := all[max(0, len(all)-10):]
		if got := r.text(); got != want {
			t.Errorf("after %q the ring holds %q, want %q", s, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	got := printable([]byte("a\x1b[31mb\r\n\tc\x00\x07\x7f\u009b\u202edé\xff\xfe漢"))
	if want := "a[31mb\n\tcdé漢"; got != want {
		t.Errorf("printable = %q, want %q", got, want)
	}
}

func TestLastLines(t *testing.T) {
	if got := lastLines("a\n\nb\nc\nd\n", 3, 100); got != "b; c; d" {
		t.Errorf("lastLines = %q", got)
	}
	if got := lastLines(strings.Repeat("é", 100), 3, 5); got != "éé" {
		t.Errorf("lastLines cut = %q", got)
	}
}

func TestPanicLine(t *testing.T) {
	text := "[    1.0] Kernel panic - not syncing: old\n[    9.1] Kernel panic - not syncing: sysrq triggered crash\n[    9.2] CPU: 0\n"
	if got := panicLine(text); got != "Kernel panic - not syncing: sysrq triggered crash" {
		t.Errorf("panicLine = %q", got)
	}
	if got := panicLine("all is well"); got != "" {
		t.Errorf("panicLine = %q, want none", got)
	}
}

// FuzzConsole: whatever a guest writes to its console, the shown text has bounded length and no
// control or format characters.
func FuzzConsole(f *testing.F) {
	f.Add([]byte("a\x1b[31m\n[    1.0] Kernel panic - not syncing: x\r\n"), uint8(7))
	f.Add([]byte("\xe2\x80\xae\xff\xf0\x9f"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		r := newRing(int(size) + 1)
		for rest := b; len(rest) > 0; {
			n := min(len(rest), int(size)/2+1)
			if _, err := r.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		text := r.text()
		if len(text) > int(size)+1 || !utf8.ValidString(text) {
			t.Errorf("%q of a ring of %d bytes", text, int(size)+1)
		}
		whole := printable(b)
		for _, c := range text + whole {
			if c != '\n' && c != '\t' && (unicode.IsControl(c) || unicode.Is(unicode.Cf, c)) {
				t.Errorf("%q lets %U pass", b, c)
			}
		}
		if last := lastLines(whole, 3, 40); len(last) > 40 || !utf8.ValidString(last) || strings.Contains(last, "\n") {
			t.Errorf("last lines %q", last)
		}
		if line := panicLine(whole); len(line) > 200 || !utf8.ValidString(line) || strings.Contains(line, "\n") {
			t.Errorf("panic line %q", line)
		}
	})
}

// The text is found however the guest's output is cut, and once.
func TestFinder(t *testing.T) {
	for name, c := range map[string]struct {
		writes []string
		want   int
	}{
		"whole":        {[]string{"[    2.9] APIC frequency too slow, disabling apic timer\r\n"}, 1},
		"cut":          {[]string{"APIC frequency too slow, disabl", "ing api", "c timer\r\n"}, 1},
		"bytes":        {strings.Split("disabling apic timer", ""), 1},
		"twice":        {[]string{"disabling apic timer, disabling apic timer", "disabling apic timer"}, 1},
		"something":    {[]string{"disabling apic", " disabling timer"}, 0},
		"nothing":      {[]string{"", ""}, 0},
		"much, and it": {[]string{strings.Repeat("x", 10000) + "disabling apic", " timer"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			found := 0
			f := &finder{text: noTimerText, found: func() { found++ }}
			for _, w := range c.writes {
				if n, err := f.Write([]byte(w)); n != len(w) || err != nil {
					t.Fatalf("%d, %v", n, err)
				}
				if len(f.end) >= len(noTimerText) {
					t.Fatalf("%d bytes are kept", len(f.end))
				}
			}
			if found != c.want {
				t.Errorf("found %d times, want %d", found, c.want)
			}
		})
	}
}
