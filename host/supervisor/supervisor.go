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

// Exit codes of the supervisor itself. All others are the container's.
const (
	exitSetup = 1 // the container was never created
	// exitLost is the exit code if the VM has ended under the container: for a caller that
	// waits, the container was killed.
	exitLost = 128 + int(unix.SIGKILL)
)

// callTimeout bounds a call to the agent that does not wait for anything. Under emulation on a
// busy host the guest is slow, but not this slow.
const callTimeout = 30 * time.Second

// supervisor is the life of a container's process and holds its parts. One goroutine sets the
// fields while the container is created; they do not change afterwards, so there is no lock.
type supervisor struct {
	boot    Bootstrap
	id      string // of the container
	log     *logrus.Logger
	parent  *launch.Parent
	standIn *standin.Peer // nil: this process is the container's pid

	up   chan struct{} // closed when the container is created
	over chan struct{} // closed when the container has ended

	record           *record
	failed           *failed
	control, streams *socket
	rests            *rests
	network          *machine.Network
	notify           *machine.Notify // nil: nobody listens
	relay            *stdio.Relay

	// These are the machine and the parts that call its guest. They are nil until the machine
	// has been started.
	machine *machine.Machine
	killing *killing
	ooms    *oomWatch
	service *service
}

func newSupervisor() *supervisor {
	return &supervisor{up: make(chan struct{}), over: make(chan struct{}), rests: newRests()}
}

// attach makes the parts that call the guest of a machine.
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

// endVM ends the virtual machine. The reason is the error that is reported.
func (s *supervisor) endVM(reason error) error {
	s.failed.loseVM(s.machine, reason)
	return s.machine.Stop()
}

// Main is the main function of husk in the role of supervisor. It returns the exit code.
func Main(starter hypervisor.Starter) int {
	s := newSupervisor()
	laps := timings.NewFromStart("supervisor")
	parent, err := launch.Receive(&s.boot)
	if err != nil {
		// Nobody can be told, because the process that started this one has closed the
		// connection.
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

// live is the life of this process from its bootstrap on.
func (s *supervisor) live(c *creation) (code int) {
	parent := s.parent
	defer s.shutDown()
	defer func() {
		if v := recover(); v != nil {
			err := s.panicked(v)
			_ = parent.Report(launch.Report{Error: err.Error()}) // the parent may have ended long ago
			code = exitLost
		}
	}()
	if s.standIn != nil {
		// The vmm ends with the pid namespace or by its parent-death signal.
		go s.standIn.Serve(s.forwardWhenUp, func() { os.Exit(exitLost) })
	}
	if err := c.run(); err != nil {
		// A parent that has gone does not need the reason.
		_ = parent.Report(launch.Report{Error: err.Error()})
		return exitSetup
	}
	return s.run()
}

// panicked logs a panic with its stack trace and returns it as an error. It does not use
// stderr, which is the container's.
func (s *supervisor) panicked(v any) error {
	err := fmt.Errorf("internal error of the supervisor, please report it with its log: %v", v)
	if s.log != nil {
		s.log.WithError(err).Errorf("%s", debug.Stack())
	}
	return err
}

// forwardWhenUp sends a signal to the container, as soon as there is one.
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

// saveTheReason answers a verb with the reason if the guest has left its call unanswered. A
// panic in a verb does not end the container.
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

// run is the container's life after create: it waits for the commit, then for the end, and
// returns the exit code.
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
		// Until the cli has committed, this process must go on.
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

// waitInit returns a channel for the exit code of the container's process.
func (s *supervisor) waitInit() <-chan int {
	ch := make(chan int, 1)
	go func() {
		resp, err := s.machine.Agent().Wait(context.Background(), &protocol.WaitRequest{
			ContainerId: s.id, ProcessId: protocol.InitProcess,
		})
		if err != nil {
			// The call fails only if the channel is broken. A guest that runs and does not
			// answer is of no use.
			s.failed.loseVM(s.machine, fmt.Errorf("wait for the container's process: %w", s.machine.Explain(context.Background(), err)))
			ch <- exitLost
			return
		}
		if resp.OomKilled {
			// A caller that waits for the exit asks the cgroup for the reason, and the cgroup
			// is removed soon.
			s.ooms.note(1)
		}
		ch <- int(resp.ExitCode & 0xff)
	}()
	return ch
}

// answerTimeout bounds how long running verbs may take after the container has ended. They all
// notice it.
const answerTimeout = 2 * time.Second

// answerVerbs lets connected callers get their answers: a start whose execve has failed ends
// the container and is about to report why, and an exec process still writes output of its
// process.
func (s *supervisor) answerVerbs(timeout <-chan time.Time) {
	// Exec processes come first: before one ends, it may hand over what is left of its outputs.
	for _, left := range []func() <-chan struct{}{s.control.peers.left, s.rests.crowd.left} {
		select {
		case <-left():
		case <-timeout:
			s.log.Warn("a verb or an exec process is still connected: ending without it")
			return
		}
	}
}

// flush waits until the container's output is read, as a pipe of its own would keep it. A kill
// ends the wait.
func (s *supervisor) flush() {
	s.record.end()
	s.network.Leave()
	select {
	case <-s.relay.Done():
	case <-s.killing.now:
	case <-s.machine.Done():
		// What the VM has sent is in this process, and the relays end by themselves.
	}
	s.notify.Flush()
}

// shutDown ends what this process has started. What it cannot reach any more ends with it: the
// vmm with the pid namespace or by its parent-death signal, mounts and taps with their
// namespaces.
func (s *supervisor) shutDown() {
	if s.machine == nil {
		return
	}
	if err := s.machine.Close(); err != nil {
		s.log.WithError(err).Warn("stop virtual machine")
	}
}
