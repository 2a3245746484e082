package protocol

import (
	"io"
	"sync"
)

// HalfCloser is a connection of which each direction ends by itself.
type HalfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

var joinBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// Join carries bytes both ways until both directions have ended. Closing the two is
// the caller's.
func Join(a, b HalfCloser) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(a, b)
	}()
	carry(b, a)
	<-done
}

// carry passes the end of what it has read on. Where nobody takes it, the sender
// learns so, too.
func carry(to, from HalfCloser) {
	buf := joinBuffers.Get().(*[]byte)
	defer joinBuffers.Put(buf)
	// Without the methods that would make io.CopyBuffer allocate a buffer of its own.
	if _, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, *buf); err != nil {
		_ = to.Close()
		_ = from.Close()
		return
	}
	_ = to.CloseWrite()
}
