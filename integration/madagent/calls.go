package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"strings"
	"sync"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/mux"
)

// A message of ttrpc begins with length, stream id, type and flags.
const (
	headerSize   = 10
	typeRequest  = 1
	typeResponse = 2
	typeData     = 3
)

// calls is the control stream. ttrpc's own server cannot be made to lie.
type calls struct {
	agent *agent
	conn  *mux.Stream

	mu   sync.Mutex
	last []byte // the last answer, as it was sent
}

func (c *calls) serve() {
	for {
		var header [headerSize]byte
		if _, err := io.ReadFull(c.conn, header[:]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(header[:]))
		if _, err := io.ReadFull(c.conn, body); err != nil {
			return
		}
		req := &ttrpc.Request{}
		if err := proto.Unmarshal(body, req); err != nil {
			return
		}
		go c.answer(binary.BigEndian.Uint32(header[4:]), req)
	}
}

// message returns a ttrpc message whose header may have another length.
func message(id uint32, kind byte, length uint32, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, length)
	b = binary.BigEndian.AppendUint32(b, id)
	return append(append(b, kind, 0), body...)
}

func (c *calls) send(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.conn.Write(b)
	c.last = b
}

func (c *calls) reply(id uint32, r *ttrpc.Response) {
	body, err := proto.Marshal(r)
	if err != nil {
		return
	}
	c.send(message(id, typeResponse, uint32(len(body)), body))
}

func (c *calls) fail(id uint32, text string) {
	// Protobuf can carry only valid UTF-8.
	c.reply(id, &ttrpc.Response{Status: status.New(codes.Internal, strings.ToValidUTF8(text, "?")).Proto()})
}

// answer answers a call as its mode says.
func (c *calls) answer(id uint32, req *ttrpc.Request) {
	point := strings.ToLower(req.Method)
	if req.Method == "Create" {
		c.learnModes(req.Payload)
	}
	how := c.agent.how(point)
	if how == "" {
		c.reply(id, &ttrpc.Response{Payload: c.do(req)})
		if req.Method == "Start" {
			c.afterStart()
		}
		if req.Method == "Wait" {
			c.afterExit()
		}
		return
	}
	announce(how)
	end(how)
	if req.Method == "Wait" { // the rest of the end is correct
		r := &protocol.WaitRequest{}
		_ = proto.Unmarshal(req.Payload, r)
		c.agent.process(r.ProcessId).drain()
	}
	switch how {
	case "error":
		c.fail(id, escapes)
	case "long":
		c.fail(id, strings.Repeat(escapes, 3<<20/len(escapes)))
	case "empty":
		c.reply(id, &ttrpc.Response{})
	case "garbage":
		c.reply(id, &ttrpc.Response{Payload: bytes.Repeat([]byte{0xff, 0x1b}, 1000)})
	case "nonsense": // no ttrpc message
		c.send(message(id, typeResponse, 1000, bytes.Repeat([]byte{0xff, 0x1b}, 500)))
	case "huge":
		c.send(message(id, typeResponse, 10<<20, make([]byte, 10<<20)))
	case "cut":
		c.send(message(id, typeResponse, 1000, []byte("few")))
	case "request":
		c.send(message(id, typeRequest, 3, []byte("mad")))
	case "data":
		c.send(message(id, typeData, 3, []byte("mad")))
	case "stranger":
		c.reply(id+1000, &ttrpc.Response{Payload: c.do(req)})
	case "replay":
		c.send(c.last)
	case "twice":
		payload := c.do(req)
		for range 2 {
			c.reply(id, &ttrpc.Response{Payload: payload})
		}
	case "storm":
		for range 100000 {
			c.reply(id, &ttrpc.Response{Payload: c.do(req)})
		}
	case "hangup":
		_ = c.conn.CloseWrite()
	case "close":
		_ = c.agent.port.Close()
	case "mute":
		c.agent.port.mute()
	case "never":
	case "absurd":
		c.reply(id, &ttrpc.Response{Payload: absurd(req.Method)})
	case "flood": // of AwaitOOM
		c.reply(id, &ttrpc.Response{Payload: oneMoreKill(req.Payload)})
	case "deaf": // reported as done, and not done
		c.reply(id, &ttrpc.Response{})
	}
}

func (c *calls) learnModes(payload []byte) {
	create, spec := &protocol.CreateRequest{}, &specs.Spec{}
	if proto.Unmarshal(payload, create) != nil || json.Unmarshal(create.Spec, spec) != nil {
		return
	}
	for _, e := range spec.Process.Env {
		if s, ok := strings.CutPrefix(e, env); ok {
			c.agent.mu.Lock()
			for point, how := range parseModes(s) {
				c.agent.modes[point] = how
			}
			c.agent.mu.Unlock()
		}
	}
}

// do answers a call correctly, as far as the host can see.
func (c *calls) do(req *ttrpc.Request) []byte {
	var resp proto.Message = &protocol.StartResponse{}
	switch req.Method {
	case "Hello":
		resp = &protocol.HelloResponse{KernelRelease: "mad", Hypervisor: "TCGTCGTCGTCG"}
	case "Create":
		resp = &protocol.CreateResponse{ShareNanos: 1e6, SetupNanos: 1e6, StageNanos: 1e6}
	case "Exec":
		resp = &protocol.ExecResponse{}
	case "Kill":
		r := &protocol.KillRequest{}
		if proto.Unmarshal(req.Payload, r) == nil {
			c.agent.process(r.ProcessId).end(128 + r.Signal)
		}
	case "Wait":
		resp = &protocol.WaitResponse{ExitCode: c.wait(req)}
	case "Stats":
		resp = &protocol.StatsResponse{MemoryUsage: 1 << 20, MemoryStat: map[string]uint64{"anon": 1}}
	case "AwaitOOM":
		select {}
	}
	b, _ := proto.Marshal(resp)
	return b
}

func (c *calls) wait(req *ttrpc.Request) uint32 {
	r := &protocol.WaitRequest{}
	if proto.Unmarshal(req.Payload, r) != nil {
		return 1
	}
	p := c.agent.process(r.ProcessId)
	if r.ProcessId != protocol.InitProcess {
		_ = p.write([]byte("mad\n"))
		p.end(0)
	}
	code := <-p.exit
	p.exit <- code
	return code
}

// absurd returns an answer of valid form with impossible values.
func absurd(method string) []byte {
	var resp proto.Message
	switch method {
	case "Hello":
		long := strings.Repeat("6.1\u202e", 100000)
		resp = &protocol.HelloResponse{KernelRelease: long, Hypervisor: long}
	case "Create":
		resp = &protocol.CreateResponse{ShareNanos: math.MinInt64, SetupNanos: math.MaxInt64, StageNanos: -1}
	case "Exec":
		resp = &protocol.ExecResponse{}
	case "Wait":
		resp = &protocol.WaitResponse{ExitCode: 0xffff_ff2a, OomKilled: true}
	case "AwaitOOM":
		resp = &protocol.AwaitOOMResponse{Kills: math.MaxUint64}
	case "Stats":
		s := &protocol.StatsResponse{
			CpuUsageUsec: math.MaxUint64, CpuUserUsec: math.MaxUint64, MemoryUsage: math.MaxUint64,
			MemoryLimit: 1, PidsCurrent: math.MaxUint64, MemoryStat: map[string]uint64{},
		}
		for i := range 200 {
			s.MemoryStat[strings.Repeat("k", i)+"\x1b[2J"] = math.MaxUint64
		}
		resp = s
	}
	b, _ := proto.Marshal(resp)
	return b
}
