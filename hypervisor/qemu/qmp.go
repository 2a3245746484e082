package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxQMPLine bounds one message, in bytes. A guest that has taken QEMU over must not use up
	// this process's memory. The longest real answers have some tens of KiB.
	maxQMPLine = 1 << 20
	// qmpWriteTimeout ends a QEMU that no longer reads. Commands are a few hundred bytes long
	// and fit into the socket's buffer.
	qmpWriteTimeout = 5 * time.Second
)

// errQMPClosed is wrapped by the error of every command after the connection has ended.
var errQMPClosed = errors.New("qmp connection closed")

// QMPError is QEMU's error for a command.
type QMPError struct {
	Command string
	Class   string // "GenericError", "CommandNotFound", ...
	Desc    string
}

func (e *QMPError) Error() string {
	return fmt.Sprintf("qmp %s: %s: %s", e.Command, e.Class, printable([]byte(e.Desc)))
}

// message is a line that QEMU sends: a greeting, an answer or an event.
type message struct {
	Greeting *greeting       `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// greeting is the first thing that QEMU sends.
type greeting struct {
	Version struct {
		QEMU version `json:"qemu"`
	} `json:"version"`
}

// parseMessage parses one line. It returns an error if the line is not exactly one kind of
// message.
func parseMessage(line []byte) (*message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return nil, fmt.Errorf("parse qmp message: %w", err)
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, fmt.Errorf("parse qmp message: it is %d of greeting, return, error and event, not one", kinds)
	}
	if m.Return != nil && m.ID == nil {
		return nil, errors.New("parse qmp message: an answer has no id")
	}
	return &m, nil
}

// readLine returns the next line without its end. After a line longer than limit bytes it
// returns an error, and r must not be used any more.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("read qmp line: it is longer than %d bytes", limit)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimRight(line, "\r\n"), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// qmp is a client of QEMU's control socket. Answers are matched to commands by id, so commands
// may overlap. Events go to one function.
type qmp struct {
	conn    net.Conn
	onEvent func(name string, data json.RawMessage)
	greeted chan greeting // buffered, for one value
	ended   chan struct{} // closed when nothing more arrives

	writeMu sync.Mutex

	mu      sync.Mutex
	lastID  uint64
	pending map[uint64]chan *message
	err     error // why it has ended; set before ended is closed
}

// newQMP starts reading. onEvent is called by the reader and must not block; it may be nil.
// Close ends the reader.
func newQMP(conn net.Conn, onEvent func(name string, data json.RawMessage)) *qmp {
	q := &qmp{
		conn: conn, onEvent: onEvent,
		greeted: make(chan greeting, 1),
		ended:   make(chan struct{}),
		pending: make(map[uint64]chan *message),
	}
	go q.read()
	return q
}

func (q *qmp) read() {
	defer close(q.ended)
	r := bufio.NewReader(q.conn)
	for {
		err := q.readOne(r)
		if err == nil {
			continue
		}
		q.mu.Lock()
		q.err = fmt.Errorf("%w: %w", errQMPClosed, err)
		q.mu.Unlock()
		// After such a message nothing from QEMU can be relied on. The error that ended the
		// connection is kept.
		q.conn.Close()
		return
	}
}

func (q *qmp) readOne(r *bufio.Reader) error {
	line, err := readLine(r, maxQMPLine)
	if err != nil {
		return err
	}
	m, err := parseMessage(line)
	if err != nil {
		return err
	}
	switch {
	case m.Greeting != nil:
		select {
		case q.greeted <- *m.Greeting:
		default:
			return errors.New("qmp greeted twice")
		}
	case m.Event != "":
		if q.onEvent != nil {
			q.onEvent(m.Event, m.Data)
		}
	case m.ID == nil:
		// An error without an id answers something that QEMU could not parse, and this client
		// sends nothing of that kind.
		return fmt.Errorf("qmp error without a command: %s", printable([]byte(m.Error.Desc)))
	default:
		q.mu.Lock()
		ch := q.pending[*m.ID]
		delete(q.pending, *m.ID)
		q.mu.Unlock()
		if ch != nil { // nil if the caller no longer waits
			ch <- m
		}
	}
	return nil
}

// negotiate waits for the greeting and leaves capabilities negotiation mode, after which
// commands work. QEMU answers only when the machine is built, so success means that it has
// accepted the whole configuration.
func (q *qmp) negotiate(ctx context.Context) (greeting, error) {
	var g greeting
	select {
	case g = <-q.greeted:
	case <-q.ended:
		// A QEMU that greets and exits at once has still greeted, so the greeting wins if both
		// are ready.
		select {
		case g = <-q.greeted:
		default:
			return g, fmt.Errorf("wait for qmp greeting: %w", q.endErr())
		}
	case <-ctx.Done():
		return g, fmt.Errorf("wait for qmp greeting: %w", context.Cause(ctx))
	}
	return g, q.Execute(ctx, "qmp_capabilities", nil, nil)
}

// Execute runs one command. args is marshalled unless it is nil, and the answer is unmarshalled
// into result unless that is nil. An error from QEMU is a *QMPError. If ctx ends first, the
// command may still take effect.
func (q *qmp) Execute(ctx context.Context, cmd string, args, result any) error {
	return q.execute(ctx, cmd, args, nil, result)
}

// PassFile gives QEMU a duplicate of f, which commands can refer to by name.
func (q *qmp) PassFile(ctx context.Context, name string, f *os.File) error {
	return q.execute(ctx, "getfd", map[string]string{"fdname": name}, f, nil)
}

func (q *qmp) execute(ctx context.Context, cmd string, args any, f *os.File, result any) error {
	answer := make(chan *message, 1)
	q.mu.Lock()
	if q.err != nil {
		defer q.mu.Unlock()
		return fmt.Errorf("qmp %s: %w", cmd, q.err)
	}
	q.lastID++
	id := q.lastID
	q.pending[id] = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.pending, id)
		q.mu.Unlock()
	}()

	if err := q.send(ctx, id, cmd, args, f); err != nil {
		return fmt.Errorf("qmp %s: %w", cmd, err)
	}
	var m *message
	select {
	case m = <-answer:
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", cmd, context.Cause(ctx))
	case <-q.ended:
		select {
		case m = <-answer: // it came just before the end
		default:
			return fmt.Errorf("qmp %s: %w", cmd, q.endErr())
		}
	}
	if m.Error != nil {
		return &QMPError{Command: cmd, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("qmp %s: parse answer: %w", cmd, err)
	}
	return nil
}

func (q *qmp) send(ctx context.Context, id uint64, cmd string, args any, f *os.File) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{cmd, args, id})
	if err != nil {
		return fmt.Errorf("encode command: %w", err)
	}
	deadline := time.Now().Add(qmpWriteTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	q.writeMu.Lock()
	defer q.writeMu.Unlock()
	if err := q.conn.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("send command: %w", err)
	}
	if err := writeWith(q.conn, append(line, '\n'), f); err != nil {
		// Part of a command may have been sent, so QEMU would misunderstand what follows. The
		// write's error is the one to report.
		q.conn.Close()
		return fmt.Errorf("send command: %w", err)
	}
	return nil
}

// writeWith sends b, and with it the descriptor f unless f is nil.
func writeWith(conn net.Conn, b []byte, f *os.File) error {
	if f == nil {
		_, err := conn.Write(b)
		return err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("only a unix socket carries a file")
	}
	n, _, err := unixConn.WriteMsgUnix(b, unix.UnixRights(int(f.Fd())), nil)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}

func (q *qmp) endErr() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

// Close ends the connection and waits for the reader.
func (q *qmp) Close() {
	// Closing a socket again, or one whose peer is gone, loses nothing.
	q.conn.Close()
	<-q.ended
}
