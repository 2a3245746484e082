package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/huskvm/husk/protocol"
)

// greetBadly answers the host's greeting with something else.
func greetBadly(p *port, how string) error {
	announce(how)
	if how != "early" {
		// The host sends first.
		if _, err := io.ReadAtLeast(p, make([]byte, 256), 1); err != nil {
			return err
		}
	}
	switch how {
	case "garbage":
		p.write([]byte("\x00\xff\x1b[2J\x07garbage\n"))
	case "early", "long":
		p.write(bytes.Repeat([]byte("a"), 1<<20))
	case "version":
		p.write(fmt.Appendf(nil, "husk/%d %s\n", 999, build))
	case "build":
		p.write(fmt.Appendf(nil, "husk/%d another\n", protocol.Version))
	case "half":
		p.write([]byte("husk/"))
	case "close":
		_ = p.Close()
	case "never":
	default:
		return fmt.Errorf("no greeting %q", how)
	}
	stop()
	return nil
}

// Frames of yamux.
const (
	frameData = iota
	frameWindow
	framePing
	frameGoAway
)

// Flags of a frame.
const (
	flagSYN = 1 << iota
	flagACK
	flagFIN
	flagRST
)

func frame(kind byte, flags uint16, id, length uint32) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, id)
	return binary.BigEndian.AppendUint32(b, length)
}

// breakChannel sends frames that are invalid in a session, and nothing afterwards.
func breakChannel(p *port, how string) error {
	const controlStream = 1
	announce(how)
	body := make([]byte, 64<<10)
	switch how {
	case "garbage":
		p.write(bytes.Repeat([]byte("\x1b[2J\xff\x00"), 100000))
	case "version":
		p.write(append([]byte{7}, frame(frameData, 0, controlStream, 0)[1:]...))
	case "kind":
		p.write(frame(200, 0, controlStream, 0))
	case "ping":
		p.write(frame(framePing, flagSYN, 0, 1))
	case "pong":
		for i := range uint32(100000) {
			p.write(frame(framePing, flagACK, 0, i))
		}
	case "open":
		for i := range uint32(10000) {
			p.write(frame(frameWindow, flagSYN, 2*i+2, 0))
		}
	case "unknown":
		for i := range uint32(1000) {
			p.write(append(frame(frameData, 0, 100000+i, 3), "abc"...))
		}
	case "overrun":
		for range 64 {
			p.write(append(frame(frameData, flagACK, controlStream, uint32(len(body))), body...))
		}
	case "huge":
		p.write(frame(frameData, flagACK, controlStream, 0xffffffff))
		for range 256 {
			p.write(body)
		}
	case "window":
		for range 1000 {
			p.write(frame(frameWindow, 0, controlStream, 0xffffffff))
		}
	case "cut":
		p.write(frame(frameData, flagACK, controlStream, 10)[:7])
	case "body":
		p.write(append(frame(frameData, flagACK, controlStream, 1000), "few"...))
	case "reset":
		for i := range uint32(100) {
			p.write(frame(frameWindow, flagRST, i, 0))
		}
	case "goaway":
		p.write(frame(frameGoAway, 0, 0, 0))
	case "close":
		_ = p.Close()
	case "mute":
	case "stall": // does not read the host's bytes either
	default:
		return fmt.Errorf("no channel %q", how)
	}
	if how != "stall" {
		_, _ = io.Copy(io.Discard, p)
	}
	stop()
	return nil
}
