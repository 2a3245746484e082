package standin

import (
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/launch/launchtest"
	"github.com/huskvm/husk/linux/syscalls"
)

const patience = time.Minute

// As husk's own main does it: see launch.Start.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if launch.CurrentRole() == launch.StandIn {
		os.Exit(Main())
	}
	os.Exit(m.Run())
}

// Signals that reach the stand-in are the container's, and its end is the supervisor's.
func TestServe(t *testing.T) {
	ours, theirs := net.Pipe()
	p := &Peer{conn: ours}
	signals, gone := make(chan unix.Signal, 10), make(chan struct{})
	go p.Serve(func(sig unix.Signal) { signals <- sig }, func() { close(gone) })
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGUSR1} {
		if _, err := theirs.Write([]byte{byte(sig)}); err != nil {
			t.Fatal(err)
		}
	}
	theirs.Close()
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("the end of the stand-in goes unnoticed")
	}
	close(signals)
	var got []unix.Signal
	for sig := range signals {
		got = append(got, sig)
	}
	if want := []unix.Signal{unix.SIGTERM, unix.SIGUSR1}; !slices.Equal(got, want) {
		t.Errorf("signals %v, want %v", got, want)
	}
}

func TestWithoutStandIn(t *testing.T) {
	if p, err := Connect(&launch.Parent{}); p != nil || err != nil {
		t.Errorf("%v, %v", p, err)
	}
}

// started is a stand-in with the supervisor's end of their connection.
func started(t *testing.T) (*launch.Child, *net.UnixConn) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a stand-in drops privileges, which needs root")
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno == unix.ENOTSUP {
		t.Skip("with cgo, which the race detector brings, nothing can be done for all threads")
	}
	ours, theirs, err := syscalls.SocketPairConn(FDPeer)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	child, err := launch.Start(launch.Options{
		Role: launch.StandIn, Args: []string{"stand-in"}, Stdout: os.Stdout, Stderr: os.Stderr,
		Files: []launch.NamedFile{{Name: FDPeer, File: theirs}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Bootstrap(struct{}{}); err != nil {
		t.Fatal(err)
	}
	return child, ours
}

// The exit code is the container's, and comes only when the supervisor has gone.
func TestStandIn(t *testing.T) {
	child, conn := started(t)
	p := &Peer{conn: conn}
	got := make([]byte, 1)
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	received := make(chan struct{})
	go func() {
		if _, err := io.ReadFull(conn, got); err == nil {
			close(received)
		}
	}()
	resend(t, child, received)
	if unix.Signal(got[0]) != unix.SIGWINCH {
		t.Errorf("the supervisor hears of signal %d", got[0])
	}
	p.End(7)
	conn.Close()
	launchtest.WantExit(t, child, 7)
}

// resend sends a signal, which has no effect where nobody is set up for it, until one is
// received.
func resend(t *testing.T, child *launch.Child, received <-chan struct{}) {
	t.Helper()
	deadline := time.After(patience)
	for {
		if err := child.Process.Signal(unix.SIGWINCH); err != nil {
			t.Fatal(err)
		}
		select {
		case <-received:
			return
		case <-deadline:
			t.Fatal("the supervisor hears of no signal")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A supervisor that has gone without a word was killed, and so was the container.
func TestStandInOfAKilledSupervisor(t *testing.T) {
	child, conn := started(t)
	conn.Close()
	launchtest.WantExit(t, child, exitLost)
}
