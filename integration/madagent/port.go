package main

import (
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// port is the virtio-serial port of the channel. Writes are whole frames, and take
// turns, so that what is injected stands between two of them.
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

// Read waits while no host is connected, when the kernel answers end of file.
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

// write is Write for who does not care.
func (p *port) write(b []byte) { _, _ = p.Write(b) }

// mute lets nobody write any more.
func (p *port) mute() { p.mu.Lock() }
