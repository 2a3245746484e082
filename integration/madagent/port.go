package main

import (
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// port is the virtio-serial port of the channel. Writes are complete frames and take turns, so
// that injected bytes are between two frames.
type port struct {
	*os.File
	raw syscall.RawConn
	mu  sync.Mutex
}

func openPort() (*port, error) {
	path, err := findPort()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &port{File: f, raw: raw}, nil
}

// Read waits while no host is connected. The kernel returns end-of-file then.
func (p *port) Read(b []byte) (n int, err error) {
	rerr := p.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), b)
		return !errors.Is(err, unix.EAGAIN) && (n != 0 || err != nil)
	})
	if err == nil {
		err = rerr
	}
	return max(n, 0), err
}

func (p *port) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.File.Write(b)
}

// write is Write without an error.
func (p *port) write(b []byte) { _, _ = p.Write(b) }

// mute blocks all later writes.
func (p *port) mute() { p.mu.Lock() }
