package main

import (
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	"github.com/containerd/ttrpc"

	"github.com/huskvm/husk/protocol"
)

// gib is the size of a flood of a process's output, in bytes.
const gib = 1 << 30

// afterStart does what the mode says after the container has started.
func (c *calls) afterStart() {
	p := c.agent.process(protocol.InitProcess)
	switch c.agent.how("stdout") {
	case "flood":
		go p.flood(gib)
	case "exit": // the exit code, then a gigabyte
		p.exit <- 0
		go p.flood(gib)
	}
	go end(c.agent.how("guest"))
	if c.agent.how("console") == "flood" {
		go floodConsole()
	}
	if how := c.agent.how("channel"); how != "" {
		go func() { _ = breakChannel(c.agent.port, how) }()
	}
	switch c.agent.how("replies") {
	case "unasked":
		for i := range uint32(1000) {
			c.reply(2*i+1, &ttrpc.Response{})
		}
	case "flood":
		for {
			c.reply(1, &ttrpc.Response{})
		}
	case "announce":
		c.send(binary.BigEndian.AppendUint32(nil, 0xffffffff))
		c.send(make([]byte, 1<<20))
	}
}

// oneMoreKill answers AwaitOOM at once, each time.
func oneMoreKill(payload []byte) []byte {
	r := &protocol.AwaitOOMRequest{}
	_ = proto.Unmarshal(payload, r)
	b, _ := proto.Marshal(&protocol.AwaitOOMResponse{Kills: r.Seen + 1})
	return b
}

// afterExit does what the mode says after the host has learned of a process's end.
func (c *calls) afterExit() {
	switch c.agent.how("late") {
	case "replies":
		for i := range uint32(1000) {
			c.reply(2*i+1, &ttrpc.Response{})
		}
	case "channel":
		_ = breakChannel(c.agent.port, "garbage")
	}
}
