package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/huskvm/husk/linux/syscalls"
)

// Parent is the cli as its child sees it.
type Parent struct {
	conn      net.Conn
	files     map[string]*os.File
	proceed   chan struct{}
	committed chan struct{}
	gone      chan struct{}
}

// Receive takes over the passed descriptors and reads the bootstrap into v.
// Every other descriptor from 3 up is marked close-on-exec.
func Receive(v any) (*Parent, error) {
	if err := syscalls.CloseOnExec(3); err != nil {
		return nil, err
	}
	fds, err := parseFDs(os.Getenv(fdsEnv))
	if err != nil {
		return nil, err
	}
	os.Clearenv()
	setTitle()
	boot, ok := fds[FDBootstrap]
	if !ok {
		return nil, errors.New("receive bootstrap: no descriptor of that name")
	}
	f := os.NewFile(uintptr(boot), FDBootstrap)
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("receive bootstrap: %w", err)
	}
	p := &Parent{conn: conn, files: map[string]*os.File{}, proceed: make(chan struct{}), committed: make(chan struct{}), gone: make(chan struct{})}
	for name, fd := range fds {
		if name != FDBootstrap {
			p.files[name] = os.NewFile(uintptr(fd), name)
		}
	}
	dec := json.NewDecoder(conn)
	if err := dec.Decode(v); err != nil {
		conn.Close()
		return nil, fmt.Errorf("receive bootstrap: %w", err)
	}
	go p.watch()
	return p, nil
}

// setTitle sets the name ps shows beside the command line: argv[0], which is the
// container's, instead of "exe".
func setTitle() {
	if len(os.Args) > 0 {
		// The kernel keeps 15 bytes. A wrong name is ugly and no more.
		_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	}
}

func parseFDs(s string) (map[string]int, error) {
	fds := map[string]int{}
	for _, entry := range strings.Split(s, ",") {
		name, number, ok := strings.Cut(entry, "=")
		fd, err := strconv.Atoi(number)
		if !ok || err != nil || fd < 3 {
			return nil, fmt.Errorf("receive bootstrap: descriptor %q is not NAME=NUMBER", entry)
		}
		fds[name] = fd
	}
	return fds, nil
}

// Console is the connected console socket, nil when none was passed.
func (p *Parent) Console() *os.File { return p.files[FDConsole] }

// File is the descriptor passed by that name, nil when none was.
func (p *Parent) File(name string) *os.File { return p.files[name] }

// Prepared tells a parent that calls WaitPrepared to go on. What the parent does
// then is done when the channel is closed.
func (p *Parent) Prepared() (<-chan struct{}, error) {
	return p.proceed, p.Report(Report{})
}

// Report answers the parent; with an error the child is expected to end.
func (p *Parent) Report(r Report) error {
	if err := json.NewEncoder(p.conn).Encode(r); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// watch tells a commit from a parent that ended. It reads to the end of the
// connection, so an abandoned child learns of it at any time.
func (p *Parent) watch() {
	defer close(p.gone)
	var b [1]byte
	for {
		if _, err := io.ReadFull(p.conn, b[:]); err != nil {
			return
		}
		// Anything else is the newline that ends the bootstrap document.
		switch b[0] {
		case proceedByte:
			close(p.proceed)
		case commitByte:
			close(p.committed)
			return
		}
	}
}

// Gone is closed when the parent will say nothing more: after its commit, or
// because it ended. Without a commit the child must end.
func (p *Parent) Gone() <-chan struct{} { return p.gone }

// Abandoned says whether the parent ended without a commit.
func (p *Parent) Abandoned() bool {
	select {
	case <-p.committed:
		return false
	default:
	}
	select {
	case <-p.gone:
		// Both may have become ready between the two looks.
		select {
		case <-p.committed:
			return false
		default:
			return true
		}
	default:
		return false
	}
}
