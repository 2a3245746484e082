package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client/fake"
	"github.com/huskvm/husk/protocol/mux"
)

const patience = time.Minute

// pair returns the two ends of a channel.
func pair(t *testing.T) (host, guest net.Conn) {
	t.Helper()
	host, guest, err := fake.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close(); _ = guest.Close() })
	return host, guest
}

// bench is a stdio whose process the test plays, with the host's ends of its streams.
type bench struct {
	*stdio
	stdin, stdout, stderr *os.File // the process's ends
	host, guest           *mux.Session
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{}
	var ours [3]*os.File
	for i, theirs := range []**os.File{&b.stdin, &b.stdout, &b.stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if ours[i], *theirs = r, w; i == 0 {
			ours[i], *theirs = w, r
		}
		t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	}
	var err error
	if b.stdio, err = newStdio(ours[0], ours[1], ours[2], nil, nil); err != nil {
		t.Fatal(err)
	}
	b.connect(t)
	return b
}

func (b *bench) connect(t *testing.T) {
	t.Helper()
	h, g := pair(t)
	var err error
	if b.host, err = mux.Host(h); err != nil {
		t.Fatal(err)
	}
	if b.guest, err = mux.Guest(g); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.host.Close(); _ = b.guest.Close() })
}

// open attaches a stream and returns the host's end of it.
func (b *bench) open(t *testing.T, kind protocol.StreamKind) *mux.Stream {
	t.Helper()
	return b.openID(t, streamID{kind: kind})
}

func (b *bench) openID(t *testing.T, id streamID) *mux.Stream {
	t.Helper()
	h, err := b.host.Open()
	if err != nil {
		t.Fatal(err)
	}
	g, err := b.guest.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.attach(id, g.(stream)); err != nil {
		t.Fatal(err)
	}
	_ = h.SetDeadline(time.Now().Add(patience))
	if err := protocol.ReadStreamAck(h); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestStalledStderrDoesNotStallStdout(t *testing.T) {
	b := newBench(t)
	stdout, stderr := b.open(t, protocol.StreamStdout), b.open(t, protocol.StreamStderr)

	const size = 64 << 20
	errSize := make(chan int64, 1)
	go func() { // fills stderr until the write blocks
		var n int64
		chunk := bytes.Repeat([]byte("e"), 4096)
		_ = b.stderr.SetWriteDeadline(time.Now().Add(patience))
		for {
			m, err := b.stderr.Write(chunk)
			n += int64(m)
			if err != nil {
				errSize <- n
				return
			}
		}
	}()
	sent := sha256.New()
	go func() {
		chunk := make([]byte, 100_003)
		for left := size; left > 0; {
			n := min(left, len(chunk))
			chunk[left%len(chunk)]++
			_, _ = sent.Write(chunk[:n])
			if _, err := b.stdout.Write(chunk[:n]); err != nil {
				return
			}
			left -= n
		}
		_ = b.stdout.Close()
	}()
	got := sha256.New()
	n, err := io.Copy(got, stdout)
	if err != nil || n != size {
		t.Fatalf("stdout: %d bytes, %v, want %d", n, err, size)
	}
	if !same(sent, got) {
		t.Fatal("stdout differs from what was written")
	}

	// Wait does not wait for the stalled reader, and the reader still gets everything later.
	_ = b.stderr.SetWriteDeadline(time.Unix(1, 0))
	want := <-errSize
	b.end()
	began := time.Now()
	b.drain(100*time.Millisecond, nil)
	if waited := time.Since(began); waited > patience/2 {
		t.Errorf("drain took %v", waited)
	}
	if n, err := io.Copy(io.Discard, stderr); err != nil || n != want {
		t.Errorf("stderr: %d bytes, %v, want %d", n, err, want)
	}
}

func same(a, b hash.Hash) bool { return bytes.Equal(a.Sum(nil), b.Sum(nil)) }

// TestEndDoesNotWaitForAHeldPipe: a child that lives on holds the pipe open. The stream ends
// all the same, and the child can go on writing.
func TestEndDoesNotWaitForAHeldPipe(t *testing.T) {
	for name, attachAfter := range map[string]bool{"attached before the end": false, "attached after": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			var stdout *mux.Stream
			if !attachAfter {
				stdout = b.open(t, protocol.StreamStdout)
			}
			if _, err := io.WriteString(b.stdout, "last words"); err != nil {
				t.Fatal(err)
			}
			b.end()
			if attachAfter {
				stdout = b.open(t, protocol.StreamStdout)
			}
			b.drain(patience, nil)
			if got, err := io.ReadAll(stdout); err != nil || string(got) != "last words" {
				t.Fatalf("got %q, %v", got, err)
			}
			_ = stdout.Close()
			for range 3 * copySize / 4096 { // more than the pipe holds
				_ = b.stdout.SetWriteDeadline(time.Now().Add(patience))
				if _, err := b.stdout.Write(make([]byte, 4096)); err != nil {
					t.Fatalf("the child's write: %v", err)
				}
			}
		})
	}
}

func TestHostClosingStdoutBreaksThePipe(t *testing.T) {
	b := newBench(t)
	stdout := b.open(t, protocol.StreamStdout)
	if err := stdout.Close(); err != nil {
		t.Fatal(err)
	}
	_ = b.stdout.SetWriteDeadline(time.Now().Add(patience))
	for {
		if _, err := b.stdout.Write(make([]byte, 4096)); err != nil {
			if !errors.Is(err, unix.EPIPE) {
				t.Errorf("write: %v, want EPIPE", err)
			}
			return
		}
	}
}

// TestHostClosingStalledStdoutBreaksThePipe: the pipe breaks also if the stream was blocked
// because the host does not read.
func TestHostClosingStalledStdoutBreaksThePipe(t *testing.T) {
	b := newBench(t)
	stdout := b.open(t, protocol.StreamStdout)
	broken := make(chan error, 1)
	go func() {
		for {
			if _, err := b.stdout.Write(make([]byte, 4096)); err != nil {
				broken <- err
				return
			}
		}
	}()
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = stdout.Close()
	select {
	case err := <-broken:
		if !errors.Is(err, unix.EPIPE) {
			t.Errorf("write: %v, want EPIPE", err)
		}
	case <-time.After(patience):
		t.Fatal("the process is still stuck")
	}
}

func TestStdinEOF(t *testing.T) {
	b := newBench(t)
	stdin := b.open(t, protocol.StreamStdin)
	if _, err := io.WriteString(stdin, "x"); err != nil {
		t.Fatal(err)
	}
	if err := stdin.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = b.stdin.SetReadDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(b.stdin); err != nil || string(got) != "x" {
		t.Fatalf("process read %q, %v", got, err)
	}
}

// TestProcessClosingStdin: when a process closes its stdin, the host's writer does not block.
func TestProcessClosingStdin(t *testing.T) {
	b := newBench(t)
	stdin := b.open(t, protocol.StreamStdin)
	_ = b.stdin.Close()
	if _, err := stdin.Write(make([]byte, 4<<20)); err != nil {
		t.Fatalf("host's write: %v", err)
	}
	if _, err := stdin.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("host's read: %v, want EOF", err)
	}
}

func TestEndOfProcessIsSeenOnStdin(t *testing.T) {
	b := newBench(t)
	stdin := b.open(t, protocol.StreamStdin)
	b.end()
	if _, err := stdin.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("host's read: %v, want EOF", err)
	}
}

func TestAttachRefuses(t *testing.T) {
	b := newBench(t)
	b.open(t, protocol.StreamStdout)
	if err := b.attach(streamID{kind: protocol.StreamStdout}, nil); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("twice: %v", err)
	}
	b.end()
	b.release()
	if err := b.attach(streamID{kind: protocol.StreamStderr}, nil); err == nil {
		t.Error("attached after release")
	}
}

func TestReleaseClosesWhatWasNotAttached(t *testing.T) {
	b := newBench(t)
	b.end()
	b.release()
	if _, err := b.stderr.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write: %v, want EPIPE", err)
	}
}

func TestTerminal(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close(); _ = slave.Close() })
	b := &bench{}
	if b.stdio, err = newStdio(nil, nil, nil, master, nil); err != nil {
		t.Fatal(err)
	}
	b.connect(t)
	stdin, stdout := b.open(t, protocol.StreamStdin), b.open(t, protocol.StreamStdout)
	if err := b.attach(streamID{kind: protocol.StreamStderr}, nil); err == nil {
		t.Error("a terminal has a stderr")
	}
	if _, err := io.WriteString(stdin, "line\n"); err != nil {
		t.Fatal(err)
	}
	// The end of the host's input does not close the terminal.
	if err := stdin.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 5)
	if _, err := io.ReadFull(slave, line); err != nil || string(line) != "line\n" {
		t.Fatalf("process read %q, %v", line, err)
	}
	if _, err := io.WriteString(slave, "out"); err != nil {
		t.Fatalf("process's write after the end of input: %v", err)
	}
	_ = slave.Close()
	b.end()
	b.drain(patience, nil)
	if got, err := io.ReadAll(stdout); err != nil || string(got) != "line\r\nout" {
		t.Errorf("host read %q, %v", got, err)
	}
}
