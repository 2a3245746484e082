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

// Parent is the cli, as its child sees it.
type Parent struct {
	conn      net.Conn
	files     map[string]*os.File
	proceed   chan struct{}
	committed chan struct{}
	gone      chan struct{}
}

// Receive takes the passed descriptors and reads the bootstrap into v. It marks every other
// descriptor from 3 on close-on-exec.
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

// setTitle sets the name that ps shows beside the command line to that of argv[0], which is the
// container's. It would be "exe".
func setTitle() {
	if len(os.Args) > 0 {
		// The kernel keeps 15 bytes. An error is ignored, because only the name would be wrong.
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

// Console returns the connected console socket; nil if none was passed.
func (p *Parent) Console() *os.File { return p.files[FDConsole] }

// File returns the descriptor that was passed by that name; nil if none was.
func (p *Parent) File(name string) *os.File { return p.files[name] }

// Prepared tells a parent that calls WaitPrepared that this process is prepared. The channel is
// closed when the parent says to proceed.
func (p *Parent) Prepared() (<-chan struct{}, error) {
	return p.proceed, p.Report(Report{})
}

// Report sends the report. After one with an error the parent expects this process to end.
func (p *Parent) Report(r Report) error {
	if err := json.NewEncoder(p.conn).Encode(r); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// watch finds out whether the parent commits or ends. It reads to the end of the connection, so
// that a child notices a parent that ends at any time.
func (p *Parent) watch() {
	defer close(p.gone)
	var b [1]byte
	for {
		if _, err := io.ReadFull(p.conn, b[:]); err != nil {
			return
		}
		// Other bytes are the newline after the bootstrap document.
		switch b[0] {
		case proceedByte:
			close(p.proceed)
		case commitByte:
			close(p.committed)
			return
		}
	}
}

// Gone returns a channel that is closed when the parent sends nothing more: after its commit,
// or because it has ended. Without a commit this process must end.
func (p *Parent) Gone() <-chan struct{} { return p.gone }

// Abandoned says whether the parent has ended without a commit.
func (p *Parent) Abandoned() bool {
	select {
	case <-p.committed:
		return false
	default:
	}
	select {
	case <-p.gone:
		// Both may have become ready between the two checks.
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
