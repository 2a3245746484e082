package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

const virtioPortsDir = "/sys/class/virtio-ports"

// findSerialPort returns the device node of the port with the name protocol.ChannelPort. It is
// empty if no such port exists yet. The kernel makes a port before it knows its name.
func findSerialPort(dir string) (string, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*", "name"))
	if err != nil {
		return "", fmt.Errorf("find serial port: %w", err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil && strings.TrimSpace(string(b)) == protocol.ChannelPort {
			return "/dev/" + filepath.Base(filepath.Dir(name)), nil
		}
	}
	return "", nil
}

func openPort(path string) (*serialPort, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open agent channel: %w", err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open agent channel %s: %w", path, err)
	}
	return &serialPort{File: f, raw: raw}, nil
}

// serialPort is a virtio-serial port whose Read waits while no host is connected. The kernel
// returns end-of-file at once in that case, and a template is saved while no host is connected.
type serialPort struct {
	*os.File
	raw syscall.RawConn
}

func (p *serialPort) Read(b []byte) (int, error) {
	var n int
	var readErr error
	err := p.raw.Read(func(fd uintptr) bool {
		for {
			n, readErr = unix.Read(int(fd), b)
			if !errors.Is(readErr, unix.EINTR) {
				break
			}
		}
		// Returning false makes the poller wait for the port's next event, which comes when the
		// host connects or sends.
		return !errors.Is(readErr, unix.EAGAIN) && (n != 0 || readErr != nil)
	})
	if err == nil {
		err = readErr
	}
	if err != nil {
		return 0, fmt.Errorf("read agent channel: %w", err)
	}
	return n, nil
}
