package mux

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/huskvm/husk/linux/syscalls"
)

const patience = time.Minute

// pair returns two ends of a real socket. net.Pipe would not do, because it has no buffer and a
// channel has one.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	one, other, err := syscalls.ConnPair("channel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = one.Close(), other.Close() })
	return one, other
}

// sessions returns both ends of a session, which end with the test.
func sessions(t *testing.T) (host, guest *Session) {
	t.Helper()
	h, g := pair(t)
	host, err := Host(h)
	if err != nil {
		t.Fatal(err)
	}
	if guest, err = Guest(g); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close(); _ = guest.Close() })
	return host, guest
}

func open(t *testing.T, host, guest *Session) (*Stream, *Stream) {
	t.Helper()
	h, err := host.Open()
	if err != nil {
		t.Fatal(err)
	}
	g, err := guest.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []net.Conn{h, g} {
		_ = s.SetDeadline(time.Now().Add(patience))
	}
	return h, g.(*Stream)
}

func TestHalfClose(t *testing.T) {
	host, guest := sessions(t)
	h, g := open(t, host, guest)
	if _, err := io.WriteString(h, "to the guest"); err != nil {
		t.Fatal(err)
	}
	if err := h.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(g); err != nil || string(b) != "to the guest" {
		t.Fatalf("guest read %q, %v", b, err)
	}
	// The other direction still works.
	if _, err := io.WriteString(g, "to the host"); err != nil {
		t.Fatal(err)
	}
	if err := g.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(h); err != nil || string(b) != "to the host" {
		t.Fatalf("host read %q, %v", b, err)
	}
}

func TestBigTransfer(t *testing.T) {
	host, guest := sessions(t)
	h, g := open(t, host, guest)
	want := make([]byte, 8<<20)
	_, _ = rand.Read(want)
	go func() {
		// Odd sizes, because frames must not depend on how the bytes are cut into writes.
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 12+len(rest)%70001)
			_, _ = g.Write(rest[:n])
			rest = rest[n:]
		}
		_ = g.CloseWrite()
	}()
	if got, err := io.ReadAll(h); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, %v, want the %d that were sent", len(got), err, len(want))
	}
}

func TestCloseWakesReader(t *testing.T) {
	host, guest := sessions(t)
	h, _ := open(t, host, guest)
	_ = h.SetDeadline(time.Time{})
	done := make(chan error, 1)
	go func() {
		_, err := h.Read(make([]byte, 1))
		done <- err
	}()
	_ = h.Close()
	select {
	case err := <-done:
		if err == nil {
			t.Error("read returned data")
		}
	case <-time.After(patience):
		t.Fatal("read still waits")
	}
}

// TestCloseDoesNotWaitForAStalledPeer: Close on the host returns also if the guest has stopped
// reading the channel.
func TestCloseDoesNotWaitForAStalledPeer(t *testing.T) {
	h, _ := pair(t)
	host, err := Host(h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	s, err := host.Open()
	if err != nil {
		t.Fatal(err)
	}
	stuck := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, 4<<20))
		stuck <- err
	}()
	closed := make(chan struct{})
	go func() { _ = s.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Close waits for the peer")
	}
	_ = host.Close()
	select {
	case err := <-stuck:
		if err == nil {
			t.Error("4 MiB went to a peer that reads nothing")
		}
	case <-time.After(patience):
		t.Fatal("a write outlives its session")
	}
}

func frame(kind byte, flags uint16, id, length uint32) []byte {
	b := []byte{0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[2:], flags)
	binary.BigEndian.PutUint32(b[4:], id)
	binary.BigEndian.PutUint32(b[8:], length)
	return b
}

// TestHostEndsSessionOnViolation: a frame that a guest may not send ends the session at once.
func TestHostEndsSessionOnViolation(t *testing.T) {
	for name, b := range map[string][]byte{
		"ping":           frame(typePing, flagSYN, 0, 1),
		"opened stream":  frame(1, flagSYN, 2, 0),
		"data for a new": frame(typeData, flagSYN, 4, 100),
		"version":        append([]byte{9}, frame(typeData, 0, 1, 0)[1:]...),
		"after data":     append(append(frame(typeData, 0, 99, 3), 1, 2, 3), frame(typePing, flagSYN, 0, 1)...),
	} {
		t.Run(name, func(t *testing.T) {
			h, g := pair(t)
			host, err := Host(h)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = host.Close() })
			for _, c := range b { // byte by byte, because a frame may come in any number of pieces
				if _, err := g.Write([]byte{c}); err != nil {
					break
				}
			}
			select {
			case <-host.Done():
			case <-time.After(patience):
				t.Fatal("session goes on")
			}
			if err := host.Err(); !errors.Is(err, ErrProtocol) {
				t.Errorf("error is %v, want ErrProtocol", err)
			}
		})
	}
}

// TestHostBoundsStreamMemory: bytes beyond a stream's window are refused before they are
// stored.
func TestHostBoundsStreamMemory(t *testing.T) {
	h, g := pair(t)
	host, err := Host(h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	if _, err := host.Open(); err != nil {
		t.Fatal(err)
	}
	go func() {
		chunk := append(frame(typeData, 0, 1, 1<<16), make([]byte, 1<<16)...)
		for sent := 0; sent < 4*hostWindow; sent += 1 << 16 {
			if _, err := g.Write(chunk); err != nil {
				return
			}
		}
	}()
	select {
	case <-host.Done():
	case <-time.After(patience):
		t.Fatal("the window is not kept")
	}
}

func TestOpenIsBounded(t *testing.T) {
	host, guest := sessions(t)
	go func() {
		for {
			if _, err := guest.Accept(); err != nil {
				return
			}
		}
	}()
	for range MaxStreams {
		if _, err := host.Open(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := host.Open(); err == nil {
		t.Error("opened one too many")
	}
}

// FuzzGuard: the guard's verdict does not depend on how the bytes are cut.
func FuzzGuard(f *testing.F) {
	f.Add(frame(typeData, 0, 1, 0), uint8(1))
	f.Add(append(frame(typeData, 0, 1, 3), 1, 2, 3), uint8(5))
	f.Add(frame(typePing, flagSYN, 0, 0), uint8(12))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		whole, pieces := newGuard(), newGuard()
		want := whole.Follow(b)
		var got error
		for rest := b; len(rest) > 0 && got == nil; {
			n := min(len(rest), int(cut)+1)
			got = pieces.Follow(rest[:n])
			rest = rest[n:]
		}
		if (got == nil) != (want == nil) {
			t.Fatalf("whole: %v, in pieces: %v", want, got)
		}
	})
}

// fromBytes is a peer that sends given bytes and accepts everything.
type fromBytes struct{ *bytes.Reader }

func (fromBytes) Write(b []byte) (int, error) { return len(b), nil }
func (fromBytes) Close() error                { return nil }

// FuzzHost: whatever bytes a guest sends, the host's session ends with them.
func FuzzHost(f *testing.F) {
	f.Add(append(frame(typeData, 0x2, 1, 3), 1, 2, 3))
	f.Add(append(frame(0x1, 0x2, 1, 100), frame(0x3, 0, 0, 0)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Host(fromBytes{bytes.NewReader(b)})
		if err != nil {
			t.Fatal(err)
		}
		if stream, err := s.Open(); err == nil {
			_, _ = io.Copy(io.Discard, stream) // until everything that the guest sent is read
			stream.Close()
		}
		select {
		case <-s.Done():
		case <-time.After(10 * time.Second):
			t.Error("the session goes on without a peer")
		}
		s.Close()
	})
}
