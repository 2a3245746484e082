// Package supervisor is the host process of one container: its pid is the
// container's pid for every engine, its namespaces, root and cgroup are the
// container's shadow on the host, and its exit code is the container's. It owns
// the VM, the connection to the agent, the container's stdio and, once it has
// its bootstrap, the saved state.
package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/mounts"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/standin"
	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor"
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

type supervisor struct {
	boot     Bootstrap
	dir      *state.Dir
	log      *logrus.Logger
	parent   *launch.Parent
	standIn  *standin.Peer // nil: this process is the container's pid itself
	timings  *timings.Log
	warnings []string // for the user, with the report

	up               chan struct{} // closed when the container is created
	control, streams *socket
	rests            *rests
	null             *os.File // /dev/null, from before there was no path to trust
	network          *machine.Network
	notify           *machine.Notify  // nil: nobody listens
	machine          *machine.Machine // nil: it has not been started
	pty              *stdio.PTY
	relay            *stdio.Relay
	ooms             ooms
	failed           failed
	// killing and killTimeout are of a container that was sent SIGKILL.
	killing     *killing
	killTimeout time.Duration
	over        chan struct{} // closed when the container has ended

	// verbs serialises what changes the container's status; mu guards the fields
	// below it for the moment they are read or written.
	verbs     sync.Mutex
	mu        sync.Mutex
	container *state.Container
	execs     map[string]*execution
	execCount int
	// beforePause is what Resume goes back to.
	beforePause state.Status
	resumed     chan struct{} // made by Pause, closed by Resume
	ended       bool          // the container's process has ended; only its output is still on its way
}

// Main is a re-executed husk in the role of supervisor. It returns the exit code.
func Main(starter hypervisor.Starter) int {
	s := &supervisor{
		execs: map[string]*execution{}, up: make(chan struct{}), over: make(chan struct{}),
		timings: timings.NewFromStart("supervisor"),
		killing: newKilling(), killTimeout: killTimeout, rests: newRests(),
	}
	parent, err := launch.Receive(&s.boot)
	if err != nil {
		// There is nobody to tell: whoever started this closed the connection.
		return exitSetup
	}
	s.parent = parent
	s.container = s.boot.Container
	s.timings.Lap("wait for bootstrap")
	if s.standIn, err = standin.Connect(parent); err != nil {
		_ = parent.Report(launch.Report{Error: err.Error()})
		return exitSetup
	}
	code := s.live(starter)
	if s.standIn != nil {
		s.standIn.End(code)
	}
	return code
}

// live is this process's life, from its bootstrap on.
func (s *supervisor) live(starter hypervisor.Starter) (code int) {
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
	if err := s.create(starter); err != nil {
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

// create does everything up to the status created and reports it.
func (s *supervisor) create(starter hypervisor.Starter) error {
	if err := s.openState(); err != nil {
		return err
	}
	face, err := openFace(s.boot.Face)
	if err != nil {
		return err
	}
	if err = s.openNetwork(); err != nil {
		return err
	}
	if hooks.AtCreate(s.container.Hooks) {
		// Before hooks change what is there.
		if err := s.network.Settle(); err != nil {
			return err
		}
	}
	if err := s.mountAll(); err != nil {
		return err
	}
	s.timings.Lap("host setup")
	finishHooks, err := s.prepareHooks()
	if err != nil {
		return err
	}
	if err := s.startMachine(starter); err != nil {
		return err
	}
	if err := s.openTerminal(); err != nil {
		return err
	}
	if err := finishHooks(); err != nil {
		return err
	}
	if err := s.network.Settle(); err != nil {
		return err
	}
	if err := mounts.EnterShadow(filepath.Join(s.boot.StateDir, state.ShadowDir)); err != nil {
		return err
	}
	s.timings.Lap("enter shadow")
	if err := s.createInGuest(); err != nil {
		return err
	}
	if err := s.serve(); err != nil {
		return err
	}
	if s.standIn != nil {
		err = s.standIn.Show(filepath.Join(s.boot.StateDir, state.ShadowDir))
	} else {
		err = enterFace(face, s.container.Rootfs)
	}
	if err != nil {
		return err
	}
	if err := s.dropPrivileges(); err != nil {
		return err
	}
	close(s.up)
	if err := s.setStatus(state.Created); err != nil {
		return err
	}
	s.timings.Lap("save state")
	phases := s.timings.Phases()
	for _, p := range phases {
		s.log.WithField("ms", float64(p.Took)/1e6).Debugf("phase %s", p.Name)
	}
	return s.parent.Report(launch.Report{Phases: phases, Warnings: s.warnings})
}

func (s *supervisor) openState() (err error) {
	if s.dir, err = state.OpenDetached(s.boot.StateDir); err != nil {
		return err
	}
	if s.null, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
		return err
	}
	if err := s.openOOM(); err != nil {
		return err
	}
	s.openNotify()
	f, err := s.dir.OpenLog()
	if err != nil {
		return fmt.Errorf("open supervisor log: %w", err)
	}
	s.log = logrus.New()
	s.log.SetOutput(logFile{f})
	if s.boot.Debug {
		s.log.SetLevel(logrus.DebugLevel)
	}
	// What a goroutine that nobody recovers says at its end; it says no more to stderr.
	if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
		return fmt.Errorf("open supervisor log: %w", err)
	}
	if err := s.failed.open(s.boot.FailuresDir); err != nil {
		s.log.WithError(err).Warn("failures of this container are not kept")
	}
	if s.control, err = listen(s.dir, state.ControlSocket); err != nil {
		return err
	}
	s.streams, err = listen(s.dir, state.StreamSocket)
	return err
}

// mountAll makes the shadow and the share.
func (s *supervisor) mountAll() error {
	// First: what is mounted from here on must not show on the host.
	if err := mounts.LeaveHost(); err != nil {
		return err
	}
	plan := s.boot.Plan
	r := &mounts.Request{
		ShadowDir: filepath.Join(s.boot.StateDir, state.ShadowDir), ShareDir: filepath.Join(s.boot.StateDir, state.ShareDir),
		Shares: plan.Shares, Mounts: plan.Guest.Mounts, Devices: plan.Guest.Linux.Devices, Cwd: plan.Guest.Process.Cwd,
		UserNS: plan.UserNS, IDMaps: s.idMap, Hooks: hooks.AtCreate(s.container.Hooks),
	}
	// Before Make: it uses the share's directory for a moment.
	s.openHog(r.ShareDir)
	guest, err := mounts.Make(r)
	if err != nil {
		return err
	}
	s.boot.Found.Mounts = guest
	takeIdentity(plan.Shadow)
	return nil
}

func (s *supervisor) idMap(share specconv.Share) *os.File {
	return s.parent.File(IDMapFile(share))
}

// openNetwork opens what the machine's network takes of the host.
func (s *supervisor) openNetwork() (err error) {
	o := machine.NetworkOptions{
		ContainerID: s.container.ID, Walls: s.boot.Walls, Sysctls: s.boot.Plan.Guest.Linux.Sysctl,
		Log: s.log, Changed: s.noteNetworkProblem,
		New: slices.ContainsFunc(s.boot.Plan.Shadow.Namespaces, func(ns specs.LinuxNamespace) bool {
			return ns.Type == specs.NetworkNamespace && ns.Path == ""
		}),
	}
	for _, share := range s.boot.Plan.Shares {
		if share.Destination == "/etc/resolv.conf" && !share.IsDir {
			o.ResolvConf = share.HostPath // a later mount covers an earlier one
		}
	}
	s.network, err = machine.OpenNetwork(o)
	return err
}

// noteNetworkProblem tells of what the container lacks of its network as long as that
// lasts, in the container's state.
func (s *supervisor) noteNetworkProblem() {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := *s.container
	// As it is by now: whoever comes last here has the last word.
	c.NetworkProblem = s.network.Problem()
	if err := s.dir.Save(&c); err != nil {
		s.log.WithError(err).Warn("save state")
		return
	}
	s.container.NetworkProblem = c.NetworkProblem
}

// startMachine starts the virtual machine, up to where its agent has answered.
func (s *supervisor) startMachine(starter hypervisor.Starter) (err error) {
	if err = s.network.OpenTaps(s.boot.Machine.NICs); err != nil {
		return err
	}
	s.noteTaps()
	disks, err := mounts.OpenDisks(s.boot.Plan.Disks)
	if err != nil {
		return err
	}
	defer mounts.CloseDisks(disks)
	s.timings.Lap("network: taps")
	o := machine.Options{
		Starter: starter, Config: &s.boot.Machine, Build: s.boot.Build, Network: s.network, Log: s.log,
		ShareDir: filepath.Join(s.boot.StateDir, state.ShareDir),
	}
	for _, d := range disks {
		o.Disks = append(o.Disks, hypervisor.Disk(d))
	}
	if p := s.boot.Plan.Guest.Process; p != nil && p.Capabilities != nil {
		o.FileCapabilities = p.Capabilities.Bounding
	}
	if users := s.parent.File(FDVMMUsers); users != nil {
		defer users.Close()
		ids := s.boot.Plan.UserNS
		uid, gid := ids.VMM(s.container.ID)
		o.User = &hypervisor.User{Namespace: users, UID: uid, GID: gid, Owns: ids.Owns}
	}
	ctx, cancel := s.whileWanted()
	defer cancel()
	ctx = timings.With(ctx, s.timings)
	if s.machine, err = machine.Start(ctx, o); err != nil {
		return err
	}
	s.warnings = append(s.warnings, s.machine.Warnings()...)
	if err := s.watchMemory(ctx); err != nil {
		return err
	}
	s.network.CloseTaps()
	return nil
}

// noteTaps saves what delete needs to undo the network's wiring when this process cannot.
func (s *supervisor) noteTaps() {
	for _, ns := range s.boot.Plan.Shadow.Namespaces {
		if ns.Type == specs.NetworkNamespace && ns.Path != "" {
			s.container.Network = &state.Network{HostPath: ns.Path, TapIndexes: s.network.TapIndexes()}
		}
	}
}

// openNotify connects to who listens to the container's process. A socket that is not
// there is nothing to fail for: the process itself finds out, as with runc.
func (s *supervisor) openNotify() {
	if s.boot.Plan.Notify == nil {
		return
	}
	var err error
	if s.notify, err = machine.OpenNotify(s.boot.Plan.Notify); err != nil {
		s.warnings = append(s.warnings, err.Error())
	}
}

func (s *supervisor) openTerminal() (err error) {
	if !s.boot.Terminal {
		return nil
	}
	socket := s.parent.Console()
	if socket == nil {
		return errors.New("open terminal: no console socket was passed")
	}
	defer socket.Close()
	s.pty, err = stdio.OpenPTY(socket, s.boot.ConsoleSize)
	return err
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
			s.failed.lost.Do(func() {}) // the end of the virtual machine is no failure then
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
		s.loseVM(s.machine.Err())
		close(s.over)
		s.answerVerbs(time.After(answerTimeout))
		return exitLost
	}
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
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
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

func (s *supervisor) status() state.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return state.Stopped
	}
	return s.container.Saved
}
