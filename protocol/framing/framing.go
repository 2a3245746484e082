// Package framing finds the headers of frames in a stream of bytes that comes from a peer
// that may be hostile, so that they can be judged before anybody acts on them.
package framing

import "sync"

// Follower follows frames that each have a header of fixed size and a body. It stores
// nothing of a body.
type Follower struct {
	header []byte
	have   int    // bytes of the header read so far
	body   uint64 // bytes of the body still to come
	judge  func(header []byte) (bodySize uint64, err error)

	mu  sync.Mutex
	err error
}

// New returns a Follower of frames whose headers have headerSize bytes. judge is called with
// each complete header and returns the size of the frame's body in bytes, or an error if the
// peer may not send such a frame.
func New(headerSize int, judge func(header []byte) (bodySize uint64, err error)) *Follower {
	return &Follower{header: make([]byte, headerSize), judge: judge}
}

// Follow takes the next bytes of the stream. A frame may be spread over any number of calls,
// which one goroutine makes at a time. It returns the error of judge; nothing may be read
// from the stream after that.
func (f *Follower) Follow(p []byte) error {
	for len(p) > 0 {
		if f.body > 0 {
			n := min(f.body, uint64(len(p)))
			f.body -= n
			p = p[n:]
			continue
		}
		n := copy(f.header[f.have:], p)
		f.have += n
		p = p[n:]
		if f.have < len(f.header) {
			return nil
		}
		f.have = 0
		var err error
		if f.body, err = f.judge(f.header); err != nil {
			f.mu.Lock()
			f.err = err
			f.mu.Unlock()
			return err
		}
	}
	return nil
}

// Err returns the error of judge that has ended the stream; nil if there was none. It may be
// called by any goroutine.
func (f *Follower) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}
