package protocol

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxGreeting bounds the greeting line; what is longer is not a husk agent.
const maxGreeting = 256

// ErrMismatch is wrapped by the handshake's errors when the two sides are not of one build.
var ErrMismatch = errors.New("host and agent do not match")

// Greet is the host's side of the handshake and the first thing on a channel:
// the host speaks first, so that nothing waits in the guest's output queue of a
// memory template, then reads the agent's answer. The answer means that the
// agent is ready for the session that o offers. The caller sets the deadline.
func Greet(rw io.ReadWriter, build string, o Offer) error {
	line, err := greetingLine(build)
	if err != nil {
		return err
	}
	// In one write: each is an interrupt for the guest.
	if _, err := rw.Write(append([]byte(line), o.encode()...)); err != nil {
		return fmt.Errorf("write greeting: %w", err)
	}
	return checkGreeting(rw, build)
}

// Answer is the agent's side of the handshake. ready is called with the host's
// offer before the answer, and its error takes the answer's place. A host of
// another build is answered all the same, so that it can say which build the
// agent is; its offer stays unread.
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

// readGreeting reads one line a byte at a time: what follows the line belongs
// to the streams and must stay unread.
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
