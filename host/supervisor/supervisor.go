// Package supervisor is the host process of one container: its pid is the
// container's pid for every engine, its namespaces, root and cgroup are the
// container's shadow on the host, and its exit code is the container's. It owns
// the container's stdio and, once it has its bootstrap, the saved state. The virtual
// machine is a part of its own (host/machine), and so are the mounts (host/mounts).
//
// Its objects, each in a file of its own with its lock: record (status and saved state),
// service (the verbs), executions, pause, killing, oomWatch and hostOOM, failed, streams and
// rests. creation makes them. What calls the guest for long holds none of their locks but
// record.changing.
//
// Where order matters in the container's life:
//
//   - creation.run lists the steps up to the status created, and why each has its place.
//   - A verb that changes the status saves before it asks the guest (record).
//   - Until the cli has committed, its end is this process's end (run). An exit code that is
//     there before the commit waits for it.
//   - The exit code is known before the container's output has been taken. The status is
//     stopped from the first on, and this process ends after the second (flush), or after a
//     kill.
//   - Verbs under way are answered (answerVerbs) before the machine goes (shutDown), for
//     their answer may be why it goes.
//   - With a stand-in the exit code is told last, when nothing is left to be ended.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/standin"
	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client"
)

// Exit codes of the supervisor itself; any other is the container's.
const (
	exitSetup = 1 // the container was never created
	// exitLost is for a VM that ended under the container: to whoever waits it
	// is a container that was killed.
	exitLost = 128 + int(unix.SIGKILL)
)

// callTimeout bounds a call to the agent that has nothing to wait for. Under
// emulation on a busy host the guest may be slow, but not this slow.
const callTimeout = 30 * time.Second

// supervisor is the life of a container's process, and holds its parts. They are set while
// the container is created, by one goroutine, and do not change afterwards, so there is no
// lock here: see each part.
type supervisor struct {
	boot    Bootstrap
	id      string // of the container
	log     *logrus.Logger
	parent  *launch.Parent
	standIn *standin.Peer // nil: this process is the container's pid itself

	up   chan struct{} // closed when the container is created
	over chan struct{} // closed when the container has ended

	record           *record
	failed           *failed
	control, streams *socket
	rests            *rests
	network          *machine.Network
	notify           *machine.Notify // nil: nobody listens
	relay            *stdio.Relay

	// The machine and what speaks to its guest; nil until it has been started.
	machine *machine.Machine
	killing *killing
	ooms    *oomWatch
	service *service
}

func newSupervisor() *supervisor {
	return &supervisor{up: make(chan struct{}), over: make(chan struct{}), rests: newRests()}
}

// attach makes the parts that speak to the guest of a machine.
func (s *supervisor) attach(m *machine.Machine, host *hostOOM) {
	s.machine = m
	s.killing = newKilling(s.id, m.Agent(), s.over, s.endVM, s.log)
	s.ooms = &oomWatch{
		id: s.id, agent: m.Agent(), log: s.log, over: s.over, record: s.record,
		ram: int64(s.boot.Machine.MemoryMiB) << 20, host: host, failed: s.failed,
	}
	s.service = &service{
		id: s.id, agent: m.Agent(), size: &s.boot.Machine, hooks: s.boot.Plan.Guest.Hooks, network: s.network,
		record: s.record, pause: newPause(), execs: newExecutions(s.id, m.Agent(), s.log), killing: s.killing, ooms: s.ooms,
		abort: func() { s.relay.Abort() }, over: s.over,
	}
}

// endVM ends the virtual machine under the container, for a reason.
func (s *supervisor) endVM(reason error) error {
	s.failed.loseVM(s.machine, reason)
	return s.machine.Stop()
}

// Main is a re-executed husk in the role of supervisor. It returns the exit code.
func Main(starter hypervisor.Starter) int {
	s := newSupervisor()
	laps := timings.NewFromStart("supervisor")
	parent, err := launch.Receive(&s.boot)
	if err != nil {
		// There is nobody to tell: whoever started this closed the connection.
		return exitSetup
	}
	s.parent, s.id = parent, s.boot.Container.ID
	laps.Lap("wait for bootstrap")
	if s.standIn, err = standin.Connect(parent); err != nil {
		_ = parent.Report(launch.Report{Error: err.Error()})
		return exitSetup
	}
	code := s.live(&creation{s: s, parent: parent, starter: starter, timings: laps})
	if s.standIn != nil {
		s.standIn.End(code)
	}
	return code
}

// live is this process's life, from its bootstrap on.
func (s *supervisor) live(c *creation) (code int) {
	parent := s.parent
	defer s.shutDown()
	defer func() {
		if v := recover(); v != nil {
			err := s.panicked(v)
			_ = parent.Report(launch.Report{Error: err.Error()}) // it may have gone long ago
			code = exitLost
		}
	}()
	if s.standIn != nil {
		// The vmm ends by the pid namespace or its parent-death signal.
		go s.standIn.Serve(s.forwardWhenUp, func() { os.Exit(exitLost) })
	}
	if err := c.run(); err != nil {
		// A parent that is gone has no use for the reason.
		_ = parent.Report(launch.Report{Error: err.Error()})
		return exitSetup
	}
	return s.run()
}

// panicked notes an error in husk itself, with where it was, in the log. Stderr is
// the container's.
func (s *supervisor) panicked(v any) error {
	err := fmt.Errorf("internal error of the supervisor, please report it with its log: %v", v)
	if s.log != nil {
		s.log.WithError(err).Errorf("%s", debug.Stack())
	}
	return err
}

// forwardWhenUp hands a signal that may come before there is a container to it.
func (s *supervisor) forwardWhenUp(sig unix.Signal) {
	<-s.up
	s.killing.forward(sig)
}

// serve answers verbs and exec processes until the process ends.
func (s *supervisor) serve() error {
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(s.saveTheReason))
	if err != nil {
		return fmt.Errorf("create control service: %w", err)
	}
	control.RegisterSupervisorService(server, s.service)
	go func() {
		err := server.Serve(context.Background(), s.control)
		s.log.WithError(err).Error("serve control socket")
	}()
	exec := &streams{id: s.id, machine: s.machine, rests: s.rests, log: s.log}
	go exec.serve(s.streams)
	return nil
}

// saveTheReason answers a verb whose call the guest left open with why it did. An
// error in a verb of husk's own is not the container's end.
func (s *supervisor) saveTheReason(ctx context.Context, decode ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, verb ttrpc.Method) (resp any, err error) {
	defer func() {
		if v := recover(); v != nil {
			resp, err = nil, s.panicked(v)
		}
	}()
	resp, err = verb(ctx, decode)
	if errors.Is(err, client.ErrClosed) {
		err = s.machine.WithConsole(s.machine.Explain(ctx, err))
	}
	return resp, err
}

// run is the container's life after create: it waits for the commit, then for
// the end, and returns the exit code.
func (s *supervisor) run() int {
	code := make(chan int, 1)
	go func() { code <- s.untilEnd() }()
	select {
	case <-s.parent.Gone():
		if s.parent.Abandoned() {
			s.log.Warn("the cli ended before it committed: container given up")
			s.failed.expectEnd()
			return exitSetup
		}
		return <-code
	case c := <-code:
		// The cli is not done with this process before it has committed.
		<-s.parent.Gone()
		return c
	}
}

// untilEnd returns the container's exit code when it has ended.
func (s *supervisor) untilEnd() int {
	select {
	case code := <-s.waitInit():
		s.flush()
		close(s.over)
		s.answerVerbs(time.After(answerTimeout))
		return code
	case <-s.machine.Done():
		s.failed.loseVM(s.machine, s.machine.Err())
		close(s.over)
		s.answerVerbs(time.After(answerTimeout))
		return exitLost
	}
}

// waitInit delivers the exit code of the container's process once.
func (s *supervisor) waitInit() <-chan int {
	ch := make(chan int, 1)
	go func() {
		resp, err := s.machine.Agent().Wait(context.Background(), &protocol.WaitRequest{
			ContainerId: s.id, ProcessId: protocol.InitProcess,
		})
		if err != nil {
			// Only a broken channel ends this call. A guest that is still there but
			// does not talk any more is of no use to anybody.
			s.failed.loseVM(s.machine, fmt.Errorf("wait for the container's process: %w", s.machine.Explain(context.Background(), err)))
			ch <- exitLost
			return
		}
		if resp.OomKilled {
			// Whoever waits for the exit asks the cgroup why, and then it goes.
			s.ooms.note(1)
		}
		ch <- int(resp.ExitCode & 0xff)
	}()
	return ch
}

// answerTimeout is how long the verbs under way may take once the container has
// ended, which all of them notice.
const answerTimeout = 2 * time.Second

// answerVerbs lets whoever is connected hear the end of it: a start whose execve
// failed ends the container and is about to tell why, and an exec process still
// writes what the one in the guest has left.
func (s *supervisor) answerVerbs(timeout <-chan time.Time) {
	// Exec processes first: before one ends it may hand over what is left of its outputs.
	for _, left := range []func() <-chan struct{}{s.control.peers.left, s.rests.crowd.left} {
		select {
		case <-left():
		case <-timeout:
			s.log.Warn("a verb or an exec process is still connected: ending without it")
			return
		}
	}
}

// flush waits until the container's output has been taken by its reader, as a
// pipe of its own would have kept it. A kill meanwhile gives it up.
func (s *supervisor) flush() {
	s.record.end()
	s.network.Leave()
	select {
	case <-s.relay.Done():
	case <-s.killing.now:
	case <-s.machine.Done():
		// What the VM had sent is in our hands; the relays end by themselves.
	}
	s.notify.Flush()
}

// shutDown ends what this process started. What it cannot reach any more ends
// with it: the vmm by the pid namespace or its parent-death signal, mounts and
// taps with their namespaces.
func (s *supervisor) shutDown() {
	if s.machine == nil {
		return
	}
	if err := s.machine.Close(); err != nil {
		s.log.WithError(err).Warn("stop virtual machine")
	}
}
