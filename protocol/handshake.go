package protocol

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxGreeting bounds the greeting line, in bytes. A peer that sends a longer one is no husk
// agent.
const maxGreeting = 256

// ErrMismatch is wrapped by the handshake's errors if host and agent are of different builds or
// protocol versions.
var ErrMismatch = errors.New("host and agent do not match")

// Greet does the host's side of the handshake, which is the first thing on a channel. It sends
// the greeting and the offer o, and reads the agent's answer. After it returns nil the agent is
// ready for the session that o describes. The host speaks first, so that a memory template
// holds no unsent bytes of the agent. The caller sets the deadline of rw.
func Greet(rw io.ReadWriter, build string, o Offer) error {
	line, err := greetingLine(build)
	if err != nil {
		return err
	}
	// One write, because each write interrupts the guest.
	if _, err := rw.Write(append([]byte(line), o.encode()...)); err != nil {
		return fmt.Errorf("write greeting: %w", err)
	}
	return checkGreeting(rw, build)
}

// Answer does the agent's side of the handshake. It calls ready with the host's offer before it
// answers; an error of ready is returned instead. If the host is of another build, the agent
// still answers with its own build, so that the host can name both, and leaves the offer
// unread.
func Answer(rw io.ReadWriter, build string, ready func(Offer) error) error {
	theirs, err := readGreeting(rw)
	if err != nil {
		return err
	}
	mismatch := compare(theirs, build)
	if mismatch == nil {
		o, err := readOffer(rw)
		if err != nil {
			return err
		}
		if err := ready(o); err != nil {
			return err
		}
	}
	line, err := greetingLine(build)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(rw, line); err != nil {
		return fmt.Errorf("write greeting: %w", err)
	}
	return mismatch
}

func greeting(build string) string {
	return fmt.Sprintf("husk/%d %s", Version, build)
}

func greetingLine(build string) (string, error) {
	line := greeting(build) + "\n"
	if len(line) > maxGreeting {
		return "", fmt.Errorf("write greeting: build %q is too long", build)
	}
	return line, nil
}

func checkGreeting(r io.Reader, build string) error {
	theirs, err := readGreeting(r)
	if err != nil {
		return err
	}
	return compare(theirs, build)
}

func compare(theirs, build string) error {
	if ours := greeting(build); theirs != ours {
		return fmt.Errorf("handshake: %w: here %q, there %q", ErrMismatch, ours, theirs)
	}
	return nil
}

// readGreeting reads one line, byte by byte, because the bytes after the line belong to the
// session and must stay unread.
func readGreeting(r io.Reader) (string, error) {
	var b strings.Builder
	var c [1]byte
	for b.Len() < maxGreeting {
		if _, err := io.ReadFull(r, c[:]); err != nil {
			return "", fmt.Errorf("read greeting: %w", noEOF(err))
		}
		if c[0] == '\n' {
			return b.String(), nil
		}
		if c[0] < ' ' || c[0] > '~' {
			return "", fmt.Errorf("read greeting: byte %#x is not text", c[0])
		}
		b.WriteByte(c[0])
	}
	return "", fmt.Errorf("read greeting: no end of line in %d bytes", maxGreeting)
}
