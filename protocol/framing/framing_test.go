package framing

import (
	"errors"
	"slices"
	"testing"
)

var errRefused = errors.New("refused")

// record returns a Follower of frames with a header of two bytes, the second of which is the
// size of the body, and the first bytes of all headers seen. A header that begins with 'x' is
// refused.
func record() (*Follower, *[]byte) {
	var seen []byte
	f := New(2, func(h []byte) (uint64, error) {
		seen = append(seen, h[0])
		if h[0] == 'x' {
			return 0, errRefused
		}
		return uint64(h[1]), nil
	})
	return f, &seen
}

func TestFollow(t *testing.T) {
	frames := []byte("a\x00b\x03xxxc\x01x")
	for _, c := range []struct {
		name string
		size int // of a piece
	}{{"whole", len(frames)}, {"byte by byte", 1}, {"across headers", 3}} {
		t.Run(c.name, func(t *testing.T) {
			f, seen := record()
			for piece := range slices.Chunk(frames, c.size) {
				if err := f.Follow(piece); err != nil {
					t.Fatal(err)
				}
			}
			if string(*seen) != "abc" || f.Err() != nil {
				t.Errorf("headers %q, %v", *seen, f.Err())
			}
		})
	}
}

func TestFollowRefuses(t *testing.T) {
	f, seen := record()
	if err := f.Follow([]byte("a\x00x\x00b\x00")); !errors.Is(err, errRefused) || !errors.Is(f.Err(), errRefused) {
		t.Errorf("%v, %v", err, f.Err())
	}
	if string(*seen) != "ax" {
		t.Errorf("headers %q", *seen)
	}
}
