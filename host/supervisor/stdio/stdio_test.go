package stdio

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
	"github.com/huskvm/husk/protocol"
)

// guestEnds makes streams, also at the same time, and keeps their other ends.
type guestEnds struct {
	mu sync.Mutex
	of map[protocol.StreamKind]*net.UnixConn
}

func (g *guestEnds) dial(_ context.Context, kind protocol.StreamKind, _ byte) (Stream, error) {
	ours, theirs, err := syscalls.ConnPair("stream")
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.of[kind] = theirs
	return ours, nil
}

// withStdio replaces descriptors 0, 1 and 2 by pipes for one test, and returns their other
// ends.
func withStdio(t *testing.T) (stdin, stdout, stderr *os.File) {
	t.Helper()
	var outer [3]*os.File
	for fd := range outer {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		inner := w
		outer[fd] = r
		if fd == 0 {
			inner, outer[fd] = r, w
		}
		saved, err := unix.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Dup3(int(inner.Fd()), fd, 0); err != nil {
			t.Fatal(err)
		}
		inner.Close()
		// os.Stdout was made for a blocking descriptor.
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = unix.Dup3(saved, fd, 0)
			unix.Close(saved)
			outer[fd].Close()
		})
	}
	return outer[0], outer[1], outer[2]
}

// TestStreamThatCannotBeOpened: a nil connection in an interface is not a nil interface, and
// closing it would panic.
func TestStreamThatCannotBeOpened(t *testing.T) {
	guest := &guestEnds{of: map[protocol.StreamKind]*net.UnixConn{}}
	why := errors.New("no stream is free")
	_, err := Pipes(t.Context(), func(ctx context.Context, kind protocol.StreamKind, number byte) (Stream, error) {
		if kind == protocol.StreamStderr {
			var none *net.UnixConn
			return none, why
		}
		return guest.dial(ctx, kind, number)
	}, devNull(t), nil)
	if !errors.Is(err, why) {
		t.Errorf("error %v, want %v", err, why)
	}
	if _, err := io.ReadAll(guest.of[protocol.StreamStdout]); err != nil {
		t.Errorf("the stream that was opened has not been closed: %v", err)
	}
}

// TestHandOver: what the process has written is written before, and the other process gets the
// rest. No byte is lost or written twice.
func TestHandOver(t *testing.T) {
	_, stdout, stderr := withStdio(t)
	guest := &guestEnds{of: map[protocol.StreamKind]*net.UnixConn{}}
	r, err := Pipes(t.Context(), guest.dial, devNull(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := guest.of[protocol.StreamStdout].Write([]byte("now")); err != nil {
		t.Fatal(err)
	}
	guest.of[protocol.StreamStderr].Close()
	r.Settle([]Held{{Kind: protocol.StreamStdout, Carried: 3}})
	now := make([]byte, 3)
	if _, err := io.ReadFull(stdout, now); err != nil || string(now) != "now" {
		t.Errorf("stdout %q, %v", now, err)
	}
	if b, err := io.ReadAll(stderr); err != nil || len(b) > 0 {
		t.Errorf("stderr, which has ended: %q, %v", b, err)
	}
	var rest Stream
	err = r.HandOver(func(from Stream, to *os.File) error {
		if rest != nil || to != os.Stdout {
			t.Errorf("%v is handed over", to)
		}
		rest = from
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	within(t, r.Done(), "relay done")
	if rest == nil {
		t.Fatal("nothing was handed over")
	}
	if _, err := guest.of[protocol.StreamStdout].Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	guest.of[protocol.StreamStdout].Close()
	if b, err := io.ReadAll(rest); err != nil || string(b) != "late" {
		t.Errorf("the rest is %q, %v", b, err)
	}
}

func TestEndOfFileAndData(t *testing.T) {
	stdin, stdout, stderr := withStdio(t)
	guest := &guestEnds{of: map[protocol.StreamKind]*net.UnixConn{}}
	r, err := Pipes(context.Background(), guest.dial, devNull(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.WriteString("in"); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	if b, err := io.ReadAll(guest.of[protocol.StreamStdin]); err != nil || string(b) != "in" {
		t.Errorf("the guest read %q, %v", b, err)
	}
	// stderr stalls: nobody reads it until stdout has ended.
	noise := bytes.Repeat([]byte("e"), 4<<20)
	go func() {
		_, _ = guest.of[protocol.StreamStderr].Write(noise)
		guest.of[protocol.StreamStderr].Close()
	}()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	go func() {
		_, _ = guest.of[protocol.StreamStdout].Write(data)
		guest.of[protocol.StreamStdout].Close()
	}()
	got, err := io.ReadAll(stdout) // it ends with the stream although this process goes on
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("stdout: %d bytes of %d, %v", len(got), len(data), err)
	}
	select {
	case <-r.Done():
		t.Error("done while stderr is still on its way")
	default:
	}
	if got, err := io.ReadAll(stderr); err != nil || !bytes.Equal(got, noise) {
		t.Errorf("stderr: %d bytes of %d, %v", len(got), len(noise), err)
	}
	within(t, r.Done(), "relay done")
}

func TestReaderGone(t *testing.T) {
	_, stdout, _ := withStdio(t)
	guest := &guestEnds{of: map[protocol.StreamKind]*net.UnixConn{}}
	r, err := Pipes(context.Background(), guest.dial, devNull(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	// Otherwise the relay would put /dev/null on the descriptors of the next test.
	defer func() {
		guest.of[protocol.StreamStderr].Close()
		within(t, r.Done(), "relay done")
	}()
	Forward(func(unix.Signal) {}, nil) // as in a supervisor, SIGPIPE must not kill this process
	stdout.Close()
	broken := make(chan struct{})
	go func() {
		defer close(broken)
		for {
			if _, err := guest.of[protocol.StreamStdout].Write([]byte("x")); err != nil {
				return
			}
		}
	}()
	within(t, broken, "the guest's stream to break")
}

func TestDialFails(t *testing.T) {
	withStdio(t)
	refused := errors.New("refused")
	guest := &guestEnds{of: map[protocol.StreamKind]*net.UnixConn{}}
	_, err := Pipes(context.Background(), func(ctx context.Context, kind protocol.StreamKind, number byte) (Stream, error) {
		if kind == protocol.StreamStderr {
			return nil, refused
		}
		return guest.dial(ctx, kind, number)
	}, devNull(t), nil)
	if !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if _, err := guest.of[protocol.StreamStdout].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("an opened stream was left open: %v", err)
	}
}

func TestSignals(t *testing.T) {
	got := make(chan unix.Signal, 8)
	sized := make(chan struct{}, 8)
	Forward(func(s unix.Signal) { got <- s }, func() { sized <- struct{}{} })
	for _, s := range []unix.Signal{unix.SIGURG, unix.SIGCHLD, unix.SIGWINCH, unix.SIGUSR1} {
		if err := unix.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
	}
	within(t, sized, "the size to be followed")
	select {
	case s := <-got:
		if s != unix.SIGUSR1 {
			t.Errorf("forwarded %v", s)
		}
	case <-time.After(5 * time.Second):
		t.Error("SIGUSR1 was not forwarded")
	}
}

func devNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func within(t *testing.T, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
}

// TestOneReason: streams that cannot be opened for the same reason give one error.
func TestOneReason(t *testing.T) {
	dial := func(context.Context, protocol.StreamKind, byte) (Stream, error) { return nil, errors.New("refused") }
	_, err := Pipes(t.Context(), dial, devNull(t), nil)
	if err == nil || err.Error() != "relay stdio: refused" {
		t.Errorf("error %v", err)
	}
}
