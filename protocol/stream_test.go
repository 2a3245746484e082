package protocol

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestStreamHeaderRoundTrip(t *testing.T) {
	for _, h := range []StreamHeader{
		{Kind: StreamControl},
		{Kind: StreamStdin, ContainerID: "c", ProcessID: InitProcess},
		{Kind: StreamConnect, ContainerID: "c", ProcessID: InitProcess, Number: 255},
		{Kind: StreamStdout, ContainerID: strings.Repeat("c", 255), ProcessID: strings.Repeat("p", 255)},
		{Kind: StreamStderr, ContainerID: "\x00\xff\n", ProcessID: ""},
	} {
		var b bytes.Buffer
		if err := h.Write(&b); err != nil {
			t.Fatal(err)
		}
		b.WriteString("rest")
		got, err := ReadStreamHeader(&b)
		if err != nil || got != h {
			t.Errorf("got %+v, %v, want %+v", got, err, h)
		}
		if b.String() != "rest" {
			t.Errorf("rest is %q", b.String())
		}
	}
}

func TestStreamHeaderRefused(t *testing.T) {
	if err := (StreamHeader{Kind: StreamStdin, ContainerID: strings.Repeat("c", 256)}).Write(io.Discard); err == nil {
		t.Error("wrote an id of 256 bytes")
	}
	if _, err := ReadStreamHeader(strings.NewReader("x\x00\x00\x00")); err == nil {
		t.Error("accepted kind x")
	}
	// A header that is cut short is never a proper end.
	for _, cut := range []string{"i", "i\x00", "i\x00\x02", "i\x00\x02a", "i\x00\x01a", "i\x00\x01a\x01"} {
		if _, err := ReadStreamHeader(strings.NewReader(cut)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v", cut, err)
		}
	}
}

func TestStreamAck(t *testing.T) {
	for name, tc := range map[string]struct {
		refusal error
		want    string
	}{
		"accepted": {nil, ""},
		"refused":  {errors.New("no such process"), "no such process"},
		"long":     {errors.New(strings.Repeat("x", 1000)), strings.Repeat("x", 255)},
		"unnamed":  {errors.New(""), "refused"},
		"escape":   {errors.New("a\x1b[2Jb"), `a\x1b[2Jb`},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := WriteStreamAck(&b, tc.refusal); err != nil {
				t.Fatal(err)
			}
			b.WriteString("rest")
			err := ReadStreamAck(&b)
			if (err != nil) != (tc.refusal != nil) {
				t.Fatalf("got %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q, want it to hold %q", err, tc.want)
			}
			if b.String() != "rest" {
				t.Errorf("rest is %q", b.String())
			}
		})
	}
	if err := ReadStreamAck(strings.NewReader("\x05ab")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: %v", err)
	}
}

func FuzzStreamHeader(f *testing.F) {
	f.Add([]byte("c\x00\x00"))
	f.Add([]byte("i\x01c\x04init"))
	f.Add([]byte("e\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := ReadStreamHeader(r)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := h.Write(&again); err != nil {
			t.Fatalf("read %+v, which cannot be written: %v", h, err)
		}
		if used := b[:len(b)-r.Len()]; !bytes.Equal(again.Bytes(), used) {
			t.Fatalf("read %q, wrote %q", used, again.Bytes())
		}
	})
}

func FuzzStreamAck(f *testing.F) {
	f.Add([]byte("\x00"))
	f.Add([]byte("\x03abc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		err := ReadStreamAck(r)
		if used := len(b) - r.Len(); used > 256 {
			t.Fatalf("read %d bytes", used)
		}
		if (err == nil) != (len(b) > 0 && b[0] == 0) {
			t.Fatalf("%q: %v", b, err)
		}
	})
}
