package stdio

import (
	"fmt"
	"os"

	"github.com/containerd/console"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// PTY is the host's half of a terminal. The engine holds the master, this process the slave,
// and the guest a second pty, which does all line discipline.
type PTY struct {
	slave *os.File
	tty   console.Console
}

// OpenPTY makes a pty, sends its master over the connected console socket (SCM_RIGHTS, one
// message with the slave's name), and makes the slave this process's controlling terminal, so
// that the kernel signals a new window size and a hang-up. It does not wait for an answer,
// because containerd's shim accepts only after create has returned.
func OpenPTY(socket *os.File, size *specs.Box) (*PTY, error) {
	master, path, err := console.NewPty()
	if err != nil {
		return nil, fmt.Errorf("open pty: %w", err)
	}
	defer master.Close()
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open pty: %w", err)
	}
	p := &PTY{slave: slave}
	if err := p.setUp(size); err != nil {
		slave.Close()
		return nil, err
	}
	rights := unix.UnixRights(int(master.Fd()))
	if err := unix.Sendmsg(int(socket.Fd()), []byte(path), rights, nil, 0); err != nil {
		slave.Close()
		return nil, fmt.Errorf("send pty to console socket: %w", err)
	}
	return p, nil
}

func (p *PTY) setUp(size *specs.Box) error {
	tty, err := console.ConsoleFromFile(p.slave)
	if err != nil {
		return fmt.Errorf("set up pty: %w", err)
	}
	p.tty = tty
	if err := tty.SetRaw(); err != nil {
		return fmt.Errorf("set up pty: %w", err)
	}
	if size != nil && size.Height > 0 && size.Width > 0 {
		err := tty.Resize(console.WinSize{Height: uint16(size.Height), Width: uint16(size.Width)})
		if err != nil {
			return fmt.Errorf("set up pty: %w", err)
		}
	}
	if err := unix.IoctlSetInt(int(p.slave.Fd()), unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("make pty the controlling terminal: %w", err)
	}
	return nil
}

// Size returns the window size that the engine has set.
func (p *PTY) Size() (rows, columns uint32, err error) {
	size, err := p.tty.Size()
	if err != nil {
		return 0, 0, fmt.Errorf("read window size: %w", err)
	}
	return uint32(size.Height), uint32(size.Width), nil
}

func (p *PTY) Read(b []byte) (int, error) { return p.slave.Read(b) }

// Write writes b unchanged. conmon turns output processing (ONLCR) on at some moment, and then
// lines from the guest's pty would end in \r\r\n.
func (p *PTY) Write(b []byte) (int, error) {
	fd := int(p.slave.Fd())
	if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil && t.Oflag&unix.OPOST != 0 {
		t.Oflag &^= unix.OPOST
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
			return 0, fmt.Errorf("keep pty raw: %w", err)
		}
	}
	return p.slave.Write(b)
}

// Close closes the slave.
func (p *PTY) Close() error { return p.slave.Close() }
