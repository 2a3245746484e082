package supervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client"
)

const (
	// killAnswer is how long the guest may take to say that it has killed the
	// container's process. One that says nothing is ended at once.
	killAnswer = 10 * time.Second
	// killTimeout is how long a container may take to end after that: its last output
	// may wait ten seconds for a reader, and what it has written to files is still
	// flushed. A guest that is ended loses both.
	killTimeout = 20 * time.Second
)

// killing sees to it that a container that was sent SIGKILL ends.
type killing struct {
	begin sync.Once
	now   chan struct{} // closed when nothing is waited for any more
	end   func()        // closes now
}

func newKilling() *killing {
	k := &killing{now: make(chan struct{})}
	k.end = sync.OnceFunc(func() { close(k.now) })
	return k
}

// within ends the container unless it has ended by then. Only the first call counts:
// a container cannot be kept alive by killing it again.
func (k *killing) within(limit time.Duration, stop func()) {
	k.begin.Do(func() {
		time.AfterFunc(limit, func() {
			stop()
			k.end()
		})
	})
}

// Kill sends a signal to the container's process, to all of its processes, or
// to one that was exec'd. SIGKILL always works: a guest that does not carry it
// out is ended itself.
func (s *supervisor) Kill(ctx context.Context, req *control.KillRequest) (*control.KillResponse, error) {
	sig := unix.Signal(req.Signal)
	if err := s.allowed(state.Kill); err != nil {
		if sig == unix.SIGKILL {
			// Ended, but its output finds no reader: who kills it wants it gone.
			s.relay.Abort()
			s.killing.end()
		}
		return nil, err
	}
	var err error
	if req.ProcessId == "" || req.ProcessId == protocol.InitProcess {
		err = s.signalInit(ctx, sig, req.All)
	} else {
		err = s.signal(ctx, req.ProcessId, sig, req.All)
	}
	if err != nil {
		return nil, err
	}
	return &control.KillResponse{}, nil
}

// signalInit sends a signal to the container's process, or to all of its processes.
func (s *supervisor) signalInit(ctx context.Context, sig unix.Signal, all bool) error {
	if sig != unix.SIGKILL {
		return s.signal(ctx, protocol.InitProcess, sig, all)
	}
	ctx, cancel := context.WithTimeout(ctx, killAnswer)
	defer cancel()
	err := s.signal(ctx, protocol.InitProcess, sig, all)
	if err != nil && !hasEnded(err) {
		s.loseVM(fmt.Errorf("the guest did not carry out a kill, so its virtual machine is ended: %w", err))
		return s.machine.Stop()
	}
	s.killing.within(s.killTimeout, func() {
		select {
		case <-s.over:
			return // it has ended, and this process is about to
		default:
		}
		s.loseVM(fmt.Errorf("the container has not ended within %s of its kill, so its virtual machine is ended", s.killTimeout))
		if err := s.machine.Stop(); err != nil {
			s.log.WithError(err).Error("end the virtual machine")
		}
	})
	return err
}

// hasEnded says that there was no process to signal, as the guest has it: its output
// is still on its way.
func hasEnded(err error) bool {
	var answered *client.AgentError
	return errors.As(err, &answered) && answered.Code == codes.NotFound
}

func (s *supervisor) signal(ctx context.Context, processID string, sig unix.Signal, all bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.machine.Agent().Kill(ctx, &protocol.KillRequest{
		ContainerId: s.container.ID, ProcessId: processID, Signal: uint32(sig), All: all,
	})
	if err != nil {
		return err
	}
	return nil
}

// forwardWhenUp is forward for a signal that may come before there is a container.
func (s *supervisor) forwardWhenUp(sig unix.Signal) {
	<-s.up
	s.forward(sig)
}

// forward hands a signal that reached this process to the container's.
func (s *supervisor) forward(sig unix.Signal) {
	if err := s.signalInit(context.Background(), sig, false); err != nil {
		s.log.WithError(err).WithField("signal", sig).Warn("forward signal")
	}
}
