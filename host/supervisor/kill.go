package supervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client"
)

const (
	// killAnswer bounds how long the guest may take to confirm that it has killed the
	// container's process. A guest that does not confirm is ended at once.
	killAnswer = 10 * time.Second
	// killTimeout bounds how long a container may take to end after that. Its last output may
	// wait ten seconds for a reader, and files that it has written are still flushed; a guest
	// that is ended loses both.
	killTimeout = 20 * time.Second
)

// killing sends signals to the container's processes and makes sure that a container that was
// sent SIGKILL ends. Its state is one sync.Once and one channel, so it has no lock.
type killing struct {
	id    string // of the container
	agent protocol.AgentService
	log   *logrus.Logger
	// endVM ends the virtual machine. The reason is the error that is reported.
	endVM func(reason error) error
	over  <-chan struct{} // closed when the container has ended
	limit time.Duration   // killTimeout, except in tests

	begin sync.Once
	now   chan struct{} // closed when nothing is waited for any more
	end   func()        // closes now; may be called more than once
}

func newKilling(containerID string, agent protocol.AgentService, over <-chan struct{}, endVM func(error) error, log *logrus.Logger) *killing {
	k := &killing{id: containerID, agent: agent, over: over, endVM: endVM, log: log, limit: killTimeout, now: make(chan struct{})}
	k.end = sync.OnceFunc(func() { close(k.now) })
	return k
}

// within ends the container unless it has ended within limit. Only the first call counts, so
// killing a container again does not give it more time.
func (k *killing) within() {
	k.begin.Do(func() {
		time.AfterFunc(k.limit, func() {
			k.endLate()
			k.end()
		})
	})
}

func (k *killing) endLate() {
	select {
	case <-k.over:
		return // it has ended, and this process is about to
	default:
	}
	if err := k.endVM(fmt.Errorf("the container has not ended within %s of its kill, so its virtual machine is ended", k.limit)); err != nil {
		k.log.WithError(err).Error("end the virtual machine")
	}
}

// signalInit sends a signal to the container's process, or to all of its processes. SIGKILL
// always works: if the guest does not do it, the virtual machine is ended.
func (k *killing) signalInit(ctx context.Context, sig unix.Signal, all bool) error {
	if sig != unix.SIGKILL {
		return k.signal(ctx, protocol.InitProcess, sig, all)
	}
	ctx, cancel := context.WithTimeout(ctx, killAnswer)
	defer cancel()
	err := k.signal(ctx, protocol.InitProcess, sig, all)
	if err != nil && !hasEnded(err) {
		return k.endVM(fmt.Errorf("the guest did not carry out a kill, so its virtual machine is ended: %w", err))
	}
	k.within()
	return err
}

// hasEnded says whether err means that the guest had no process to signal. Its output may still
// be on its way.
func hasEnded(err error) bool {
	var answered *client.AgentError
	return errors.As(err, &answered) && answered.Code == codes.NotFound
}

// signal sends a signal to one process or, if processID is the container's ID, to all.
func (k *killing) signal(ctx context.Context, processID string, sig unix.Signal, all bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := k.agent.Kill(ctx, &protocol.KillRequest{
		ContainerId: k.id, ProcessId: processID, Signal: uint32(sig), All: all,
	})
	return err
}

// forward sends a signal that this process got to the container's process.
func (k *killing) forward(sig unix.Signal) {
	if err := k.signalInit(context.Background(), sig, false); err != nil {
		k.log.WithError(err).WithField("signal", sig).Warn("forward signal")
	}
}
