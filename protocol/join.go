package protocol

import (
	"io"
	"net"
	"sync"
)

// HalfCloser is a connection whose directions can be closed one by one.
type HalfCloser interface {
	io.ReadWriteCloser
	// CloseWrite ends the writing direction: the peer reads end-of-file after the last byte.
	CloseWrite() error
}

// HalfCloseConn is a net.Conn that is a HalfCloser, such as a TCP or unix connection or a
// stream of package mux.
type HalfCloseConn interface {
	net.Conn
	CloseWrite() error
}

var joinBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// Join copies bytes in both directions until both have ended. The caller closes a and b.
func Join(a, b HalfCloser) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(a, b)
	}()
	carry(b, a)
	<-done
}

// carry copies from one connection to the other, and then passes the end-of-file on. If
// writing fails it closes both connections, so that the sender learns that nobody reads.
func carry(to, from HalfCloser) {
	buf := joinBuffers.Get().(*[]byte)
	defer joinBuffers.Put(buf)
	// The wrappers hide the methods with which io.CopyBuffer would allocate a buffer of its
	// own.
	if _, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, *buf); err != nil {
		_ = to.Close()
		_ = from.Close()
		return
	}
	_ = to.CloseWrite()
}
