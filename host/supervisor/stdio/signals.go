package stdio

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Forward calls send for each signal that this process gets from now on, and winch when its
// terminal has a new size; winch is nil without a terminal. Engines signal the pid they know,
// which is this process's, and mean the container.
func Forward(send func(unix.Signal), winch func()) {
	ch := make(chan os.Signal, 64)
	signal.Notify(ch)
	go func() {
		for s := range ch {
			sig, ok := s.(unix.Signal)
			if !ok || ours(sig) {
				continue
			}
			if sig == unix.SIGWINCH && winch != nil {
				winch()
				continue
			}
			send(sig)
		}
	}()
}

// ours says whether a signal concerns this process and not the container: the preemption of
// Go's runtime (SIGURG), its own children, a reader of stdout that has gone, and the job
// control of the terminal that it relays.
func ours(sig unix.Signal) bool {
	switch sig {
	case unix.SIGURG, unix.SIGCHLD, unix.SIGPIPE, unix.SIGTTIN, unix.SIGTTOU:
		return true
	}
	return false
}
