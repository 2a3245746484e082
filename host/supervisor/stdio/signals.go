package stdio

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Forward calls send for each signal that reaches this process from now on and
// winch when its terminal has a new size (nil without a terminal). Engines
// signal the pid they know, which is this one, and mean the container.
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

// ours says that a signal is about this process and not meant for the
// container: the Go runtime's preemption (SIGURG), its own children, a reader
// of stdout that went away, and the job control of the terminal it relays.
func ours(sig unix.Signal) bool {
	switch sig {
	case unix.SIGURG, unix.SIGCHLD, unix.SIGPIPE, unix.SIGTTIN, unix.SIGTTOU:
		return true
	}
	return false
}
