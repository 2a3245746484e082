package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/mounts"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor"
)

// creation takes a supervisor from its bootstrap to the status created. Only one goroutine uses
// it, so it has no lock.
type creation struct {
	s        *supervisor
	parent   *launch.Parent
	starter  hypervisor.Starter
	timings  *timings.Log
	warnings []string // for the user, sent with the report

	null    *os.File // /dev/null, opened while paths could be trusted
	shown   []face   // the namespaces that /proc/PID is to show
	hostOOM *hostOOM
	pty     *stdio.PTY      // nil: the container has no terminal
	proceed <-chan struct{} // closed when the cli's hooks have run; nil without hooks
}

// run does the steps up to the status created, and reports it. The order of the steps is
// important: the comments say why.
func (c *creation) run() error {
	for _, step := range []func() error{
		// This is the first step, so that every later failure is in the log.
		c.openState,
		// Paths can be trusted only until enterShadow.
		c.openShown,
		c.openNetwork,
		// Hooks may change the settings of the network namespace, so the settings of a fresh
		// namespace must be read before they run.
		c.settleBeforeHooks,
		c.mountAll,
		// Hooks expect the mounts. They run while the machine starts, so this is before
		// startMachine.
		c.prepareHooks,
		// The machine exports the share, which needs the mounts.
		c.startMachine,
		// /dev/ptmx must still be the host's.
		c.openTerminal,
		// Hooks are programs of the host and need its tree, so this is before enterShadow. It
		// is after startMachine, so that they run while the machine starts.
		c.finishHooks,
		// The settings of a fresh namespace are read from the host's /proc, so this is before
		// enterShadow.
		c.settleNetwork,
		// From here on no path can be trusted, so nothing is opened or executed by path.
		c.enterShadow,
		// Nothing of the container may be in the guest while this process still has the host's
		// tree.
		c.createInGuest,
		// Verbs that connect must find a container, so this is after createInGuest. Nobody has
		// been told yet that the container exists.
		c.serve,
		// This moves the main thread out of namespaces that the earlier steps need, and takes
		// privileges that dropPrivileges drops.
		c.show,
		// Every step that needs privileges is done. Nobody has been told yet that the container
		// exists, so whoever runs something in it finds the privileges dropped.
		c.dropPrivileges,
		// This is the last step: an engine that sees this status calls start.
		c.setCreated,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return c.parent.Report(launch.Report{Phases: c.timings.Phases(), Warnings: c.warnings})
}

// openState opens the files of the host that the supervisor needs during the container's life.
func (c *creation) openState() error {
	s := c.s
	dir, err := state.OpenDetached(s.boot.StateDir)
	if err != nil {
		return err
	}
	if c.null, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
		return err
	}
	f, err := dir.OpenLog()
	if err != nil {
		return fmt.Errorf("open supervisor log: %w", err)
	}
	s.log = logrus.New()
	s.log.SetOutput(logFile{f})
	if s.boot.Debug {
		s.log.SetLevel(logrus.DebugLevel)
	}
	// This is what Go prints when no goroutine recovers from a panic. It prints no more on
	// stderr.
	if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
		return fmt.Errorf("open supervisor log: %w", err)
	}
	s.record = newRecord(dir, s.boot.Container, s.log)
	s.failed = openFailed(s.id, s.boot.FailuresDir, s.log)
	if c.hostOOM, err = openHostOOM(dir, s.boot.Container.Cgroup, s.log); err != nil {
		return err
	}
	c.openNotify()
	if s.control, err = listen(dir, state.ControlSocket); err != nil {
		return err
	}
	s.streams, err = listen(dir, state.StreamSocket)
	return err
}

// openNotify connects to the service manager that listens to the container's process. It is no
// error if the socket does not exist: the process finds that out itself, as with runc.
func (c *creation) openNotify() {
	want := c.s.boot.Plan.Notify
	if want == nil {
		return
	}
	var err error
	if c.s.notify, err = machine.OpenNotify(want); err != nil {
		c.warnings = append(c.warnings, err.Error())
	}
}

func (c *creation) openShown() (err error) {
	c.shown, err = openFace(c.s.boot.Face)
	return err
}

// openNetwork opens what the machine's network needs of the host.
func (c *creation) openNetwork() (err error) {
	s := c.s
	o := machine.NetworkOptions{
		ContainerID: s.id, Walls: s.boot.Walls, Sysctls: s.boot.Plan.Guest.Linux.Sysctl,
		Log:     s.log,
		Changed: func() { s.record.saveNetworkProblem(s.network.Problem) },
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

func (c *creation) settleBeforeHooks() error {
	if !c.hasHooks() {
		return nil
	}
	return c.settleNetwork()
}

func (c *creation) settleNetwork() error { return c.s.network.Settle() }

// mountAll makes the shadow and the share.
func (c *creation) mountAll() error {
	s := c.s
	// First, because what is mounted from here on must not appear on the host.
	if err := mounts.LeaveHost(); err != nil {
		return err
	}
	plan := s.boot.Plan
	r := &mounts.Request{
		ShadowDir: filepath.Join(s.boot.StateDir, state.ShadowDir), ShareDir: filepath.Join(s.boot.StateDir, state.ShareDir),
		Shares: plan.Shares, Mounts: plan.Guest.Mounts, Devices: plan.Guest.Linux.Devices, Cwd: plan.Guest.Process.Cwd,
		UserNS: plan.UserNS, IDMaps: c.idMap, Hooks: c.hasHooks(),
	}
	// Before Make, because it uses the share's directory for a moment.
	c.hostOOM.openProgram(r.ShareDir)
	guest, err := mounts.Make(r)
	if err != nil {
		return err
	}
	s.boot.Found.Mounts = guest
	takeIdentity(plan.Shadow)
	c.timings.Lap("host setup")
	return nil
}

func (c *creation) idMap(share specconv.Share) *os.File { return c.parent.File(IDMapFile(share)) }

// startMachine starts the virtual machine, and returns when its agent has answered.
func (c *creation) startMachine() error {
	s := c.s
	if err := s.network.OpenTaps(s.boot.Machine.NICs); err != nil {
		return err
	}
	c.noteTaps()
	disks, err := mounts.OpenDisks(s.boot.Plan.Disks)
	if err != nil {
		return err
	}
	defer mounts.CloseDisks(disks)
	c.timings.Lap("network: taps")
	o := machine.Options{
		Starter: c.starter, Config: &s.boot.Machine, Build: s.boot.Build, Network: s.network, Log: s.log,
		ShareDir: filepath.Join(s.boot.StateDir, state.ShareDir),
	}
	for _, d := range disks {
		o.Disks = append(o.Disks, hypervisor.Disk(d))
	}
	if p := s.boot.Plan.Guest.Process; p != nil && p.Capabilities != nil {
		o.FileCapabilities = p.Capabilities.Bounding
	}
	if users := c.parent.File(FDVMMUsers); users != nil {
		defer users.Close()
		ids := s.boot.Plan.UserNS
		uid, gid := ids.VMM(s.id)
		o.User = &hypervisor.User{Namespace: users, UID: uid, GID: gid, Owns: ids.Owns}
	}
	ctx, cancel := c.whileWanted()
	defer cancel()
	ctx = log.WithLogger(timings.With(ctx, c.timings), logrus.NewEntry(c.s.log))
	m, err := machine.Start(ctx, o)
	if err != nil {
		return err
	}
	s.attach(m, c.hostOOM)
	c.warnings = append(c.warnings, m.Warnings()...)
	if err := c.hostOOM.openVMM(ctx, m); err != nil {
		return err
	}
	// The vmm has its own descriptors now. If this process kept its copies, a tap would not end
	// with the vmm.
	s.network.CloseTaps()
	return nil
}

// noteTaps notes in the record what delete needs to undo the network's wiring if this process
// cannot do it.
func (c *creation) noteTaps() {
	for _, ns := range c.s.boot.Plan.Shadow.Namespaces {
		if ns.Type == specs.NetworkNamespace && ns.Path != "" {
			c.s.record.setNetwork(&state.Network{HostPath: ns.Path, TapIndexes: c.s.network.TapIndexes()})
		}
	}
}

func (c *creation) openTerminal() (err error) {
	s := c.s
	if !s.boot.Terminal {
		return nil
	}
	socket := c.parent.Console()
	if socket == nil {
		return errors.New("open terminal: no console socket was passed")
	}
	defer socket.Close()
	c.pty, err = stdio.OpenPTY(socket, s.boot.ConsoleSize)
	return err
}

func (c *creation) shadowDir() string { return filepath.Join(c.s.boot.StateDir, state.ShadowDir) }

func (c *creation) enterShadow() error {
	if err := mounts.EnterShadow(c.shadowDir()); err != nil {
		return err
	}
	c.timings.Lap("enter shadow")
	return nil
}

func (c *creation) serve() error { return c.s.serve() }

// show makes /proc/PID of the container's pid show what config.json asks for.
func (c *creation) show() error {
	if c.s.standIn != nil {
		return c.s.standIn.Show(c.shadowDir())
	}
	return enterFace(c.shown, c.s.boot.Container.Rootfs)
}

func (c *creation) setCreated() error {
	close(c.s.up) // signals that came in the meantime are sent now
	if err := c.s.record.setStatus(state.Created); err != nil {
		return err
	}
	c.timings.Lap("save state")
	return nil
}

// whileWanted returns a context for the time before the container is created. It ends with the
// cli.
func (c *creation) whileWanted() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		select {
		case <-c.parent.Gone():
			cancel(errors.New("the cli ended before the container was created"))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}
