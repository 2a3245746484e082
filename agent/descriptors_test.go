package main

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/huskvm/husk/protocol"
)

func TestDescriptorsRefused(t *testing.T) {
	for name, kinds := range map[string]string{
		"unknown": "iox",
		"many":    strings.Repeat("i", protocol.MaxDescriptors+1),
	} {
		if _, err := openDescriptors([]byte(kinds)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestDescriptorBoth: a passed socket carries bytes in both directions, and each direction ends
// by itself.
func TestDescriptorBoth(t *testing.T) {
	passed, err := openDescriptors([]byte{byte(protocol.DescriptorBoth)})
	if err != nil {
		t.Fatal(err)
	}
	process := theirs(passed)[0]
	defer process.Close()
	b := &bench{}
	if b.stdio, err = newStdio(nil, nil, nil, nil, passed); err != nil {
		t.Fatal(err)
	}
	b.connect(t)
	in := b.openID(t, streamID{protocol.StreamStdin, protocol.FirstDescriptor})
	out := b.openID(t, streamID{protocol.StreamStdout, protocol.FirstDescriptor})
	if err := b.attach(streamID{kind: protocol.StreamStdout}, nil); err == nil {
		t.Error("attached a stdout that there is not")
	}
	if _, err := io.WriteString(in, "question"); err != nil {
		t.Fatal(err)
	}
	if err := in.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(process); err != nil || string(got) != "question" {
		t.Errorf("the process read %q, %v", got, err)
	}
	if _, err := io.WriteString(process, "answer"); err != nil {
		t.Fatal(err)
	}
	process.Close()
	if got, err := io.ReadAll(out); err != nil || string(got) != "answer" {
		t.Errorf("the host read %q, %v", got, err)
	}
	b.end()
	b.drain(patience, nil)
}

func TestDescriptorListener(t *testing.T) {
	passed, err := openDescriptors([]byte{byte(protocol.DescriptorUnix), byte(protocol.DescriptorInput)})
	if err != nil {
		t.Fatal(err)
	}
	defer closeTheirs(passed)
	defer closeOurs(passed)
	l, err := net.FileListener(passed[0].theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, p := &bench{}, &process{passed: passed}
	b.connect(t)
	connect := func(number byte) (stream, error) {
		h, err := b.host.Open()
		if err != nil {
			t.Fatal(err)
		}
		g, err := b.guest.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return h, p.connect(number, g.(stream))
	}
	for _, number := range []byte{0, protocol.FirstDescriptor + 1, 255} {
		if _, err := connect(number); err == nil {
			t.Errorf("connected to %d", number)
		}
	}
	h, err := connect(protocol.FirstDescriptor)
	if err != nil {
		t.Fatal(err)
	}
	_ = h.SetDeadline(time.Now().Add(patience))
	if err := protocol.ReadStreamAck(h); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	if _, err := io.WriteString(h, "echo"); err != nil {
		t.Fatal(err)
	}
	if err := h.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(h); err != nil || string(got) != "echo" {
		t.Errorf("read %q, %v", got, err)
	}
}
