package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/mux"
)

// agent is the mad guest.
type agent struct {
	port *port

	mu        sync.Mutex
	modes     modes
	processes map[string]*process
}

// process is a process that does not exist.
type process struct {
	mu      sync.Mutex
	outputs []*mux.Stream
	over    bool
	exit    chan uint32
}

func newAgent(p *port, early modes) *agent {
	return &agent{port: p, modes: early, processes: map[string]*process{}}
}

func (a *agent) how(point string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.modes[point]
}

func (a *agent) process(id string) *process {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.processes[id]
	if p == nil {
		p = &process{exit: make(chan uint32, 1)}
		a.processes[id] = p
	}
	return p
}

// end ends the process after its output.
func (p *process) end(code uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	p.over = true
	for _, s := range p.outputs {
		_ = s.CloseWrite()
	}
	p.exit <- code
}

// drain ends its output.
func (p *process) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.outputs {
		_ = s.CloseWrite()
	}
}

// write writes to each output.
func (p *process) write(b []byte) error {
	p.mu.Lock()
	outputs := p.outputs
	p.mu.Unlock()
	var errs []error
	for _, s := range outputs {
		_, err := s.Write(b)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (a *agent) serve(session *mux.Session) error {
	for {
		conn, err := session.Accept()
		if err != nil {
			return err
		}
		go a.attach(conn.(*mux.Stream))
	}
}

// attach answers the header of a stream and does what the mode says.
func (a *agent) attach(s *mux.Stream) {
	h, err := protocol.ReadStreamHeader(s)
	if err != nil {
		return
	}
	if h.Kind == protocol.StreamControl {
		if !answerHeader(s, a.how("control")) {
			return
		}
		(&calls{agent: a, conn: s}).serve()
		return
	}
	point := "ack"
	if h.ProcessID != protocol.InitProcess && h.ProcessID != "" {
		point = "execack"
	}
	if h.Kind == protocol.StreamStdout || h.Kind == protocol.StreamStderr {
		// This comes before the host knows that the stream is attached, after which it waits
		// for the end.
		p := a.process(h.ProcessID)
		p.mu.Lock()
		p.outputs = append(p.outputs, s)
		p.mu.Unlock()
	}
	if !answerHeader(s, a.how(point)) {
		return
	}
	switch h.Kind {
	case protocol.StreamStdin:
		if a.how("stdin") == "stall" {
			return
		}
		_, _ = io.Copy(io.Discard, s)
	case protocol.StreamStdout, protocol.StreamStderr:
		if a.how("stdout") == "early" && h.ProcessID == protocol.InitProcess {
			_ = s.CloseWrite()
		}
	case protocol.StreamNames:
		floodNames(s, a.how("names"))
	case protocol.StreamNotify:
		floodNotify(s, a.how("notify"))
	}
}

// answerHeader says whether the stream goes on.
func answerHeader(s *mux.Stream, how string) bool {
	announce(how)
	switch how {
	case "":
		return protocol.WriteStreamAck(s, nil) == nil
	case "controls":
		_, _ = s.Write(append([]byte{255}, controls()...))
	case "escapes":
		_ = protocol.WriteStreamAck(s, errors.New(escapes))
	case "never":
	case "cut":
		_, _ = s.Write([]byte{200, 'm', 'a', 'd'})
		_ = s.CloseWrite()
	case "stall":
		_, _ = s.Write([]byte{200, 'm', 'a', 'd'})
	case "close":
		_ = s.CloseWrite()
	case "more":
		_, _ = s.Write(append([]byte{0}, make([]byte, 200<<10)...))
		return true
	}
	return false
}

// chunk is the size of one write of a flood.
const chunk = 64 << 10

// flood writes this many bytes to the process's outputs, or as many as the host takes.
func (p *process) flood(bytes int) {
	b := make([]byte, chunk)
	for i := range b {
		b[i] = 'x'
	}
	for ; bytes > 0; bytes -= chunk {
		if p.write(b) != nil {
			return
		}
	}
}

func floodNames(s net.Conn, how string) {
	for i := uint32(0); ; i++ {
		m := protocol.NameMessage{ID: i, TCP: i%2 == 0, Message: []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03mad\x00\x00\x01\x00\x01")}
		var err error
		switch how {
		case "flood":
			err = m.Write(s)
		case "big":
			m.Message = make([]byte, 0xffff)
			err = m.Write(s)
		case "same":
			m.ID = 7
			err = m.Write(s)
		case "pointers": // a name that points to itself
			m.Message = append(append([]byte{}, m.Message[:12]...), 0xc0, 0x0c, 0, 1, 0, 1)
			err = m.Write(s)
		case "malformed":
			_, _ = s.Write([]byte{0, 0, 0, 1, 9, 0, 0, 0xff})
			return
		case "cut":
			_, _ = s.Write([]byte{0, 0, 0, 1, 0, 0xff, 0xff, 'm'})
			_ = s.(*mux.Stream).CloseWrite()
			return
		default:
			return
		}
		if err != nil {
			return
		}
	}
}

func floodNotify(s net.Conn, how string) {
	for i := 0; ; i++ {
		var err error
		switch how {
		case "flood":
			err = protocol.WriteNotification(s, fmt.Appendf(nil, "STATUS=mad %d\nMAINPID=1", i))
		case "big":
			err = protocol.WriteNotification(s, append([]byte("STATUS="), make([]byte, protocol.MaxNotification-7)...))
		case "long":
			_, _ = s.Write([]byte{0xff, 0xff})
			_, err = s.Write(make([]byte, 0xffff))
		case "empty":
			_, err = s.Write([]byte{0, 0})
		case "cut":
			_, _ = s.Write([]byte{1})
			_ = s.(*mux.Stream).CloseWrite()
			return
		default:
			return
		}
		if err != nil {
			return
		}
	}
}
