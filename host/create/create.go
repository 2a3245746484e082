// Package create makes a container, up to the status created: it loads the bundle, makes the
// plan, decides about the virtual machine, and starts the supervisor.
package create

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/caller"
	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/lifecycle"
	"github.com/huskvm/husk/host/limits"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/timings"
)

// Options are the options of the verbs create and run.
type Options struct {
	ID     string
	Root   string // absolute directory of the containers' state
	Bundle string // directory of config.json; empty: the working directory
	// Settings are those of the host's settings file.
	Settings *config.Config
	// Detach: the caller does not wait for the container.
	Detach bool
	// ConsoleSocket is the path of the engine's unix socket that receives the pty's master. If
	// it is empty, Console receives it: one end of a socket pair of the caller, nil if there is
	// none.
	ConsoleSocket string
	Console       *os.File
	PidfdSocket   string // path of a unix socket that receives a pidfd; empty: none
	PidFile       string // empty: none
	// PreserveFDs is the number of descriptors from 3 on that the process gets, in addition to
	// those of a service manager.
	PreserveFDs   int
	SystemdCgroup bool // use systemd to make cgroups
	Debug         bool
	Build         string // build that husk and its agent must have
}

// New makes a container, up to the status created. It returns the process that is the
// container's pid, and whether the container has a terminal. After an error nothing is left of
// the container.
//
// The order of the steps is important: what may be refused is refused before run makes
// anything of the container.
func New(ctx context.Context, o Options) (_ *os.Process, terminal bool, err error) {
	if os.Geteuid() != 0 {
		return nil, false, errors.New("husk needs root: rootless containers are not supported yet")
	}
	n := &creation{options: &o}
	spec, err := n.load()
	if err != nil {
		return nil, false, err
	}
	// Before the plan is made: the process is told of these sockets in its environment.
	activated := caller.Activate(spec.Process)
	if err := n.convert(spec); err != nil {
		return nil, false, err
	}
	timings.Lap(ctx, "read config.json")
	defer func() { launch.CloseFiles(n.passed) }()
	if err := n.takeFromCaller(activated, spec.Process); err != nil {
		return nil, false, err
	}
	if err := n.decide(ctx, spec); err != nil {
		return nil, false, err
	}
	timings.Lap(ctx, "settings, kernel, template")
	if n.container, err = n.describe(spec); err != nil {
		return nil, false, err
	}
	process, err := n.run(ctx)
	if err != nil {
		return nil, false, err
	}
	n.warn()
	return process, n.boot.Terminal, nil
}

// load reads config.json. No later verb reads it again.
func (n *creation) load() (*specs.Spec, error) {
	var err error
	if n.bundle, err = filepath.Abs(n.options.Bundle); err != nil {
		return nil, fmt.Errorf("resolve bundle: %w", err)
	}
	spec, err := specconv.Load(n.bundle)
	if err != nil {
		return nil, err
	}
	return spec, refuseExisting(n.options.Root, n.options.ID)
}

// takeFromCaller takes what the caller passes on to the process: descriptors, and the socket for
// a terminal. activated is the number of descriptors that are a service manager's sockets.
func (n *creation) takeFromCaller(activated int, process *specs.Process) (err error) {
	o := n.options
	if n.boot.Descriptors, n.passed, err = caller.Descriptors(o.PreserveFDs + activated); err != nil {
		return err
	}
	n.boot.Terminal, n.boot.ConsoleSize, n.boot.BareNewlines = process.Terminal, process.ConsoleSize, !o.Detach
	if err := caller.CheckTerminal(process.Terminal, o.Detach, o.ConsoleSocket != ""); err != nil {
		return err
	}
	n.console, err = caller.DialConsole(o.ConsoleSocket, o.Console)
	return err
}

// decide decides what the plan leaves to the settings: the walls and the machine.
func (n *creation) decide(ctx context.Context, spec *specs.Spec) error {
	settings := n.options.Settings
	walls, err := wallsOf(settings, n.plan)
	if err != nil {
		return err
	}
	chosen, err := choose(ctx, settings, n.plan, spec.Annotations)
	if err != nil {
		return err
	}
	n.warnings = append(n.warnings, chosen.Warnings...)
	n.boot.Machine, n.boot.Found.CPUs, n.boot.Walls = chosen.Machine, chosen.CPUs, *walls
	n.boot.FailuresDir, n.boot.Build, n.boot.Debug = settings.Failures, n.options.Build, n.options.Debug
	return nil
}

// describe returns the state of the container that is saved.
func (n *creation) describe(spec *specs.Spec) (*state.Container, error) {
	self, err := state.ProcessOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	return &state.Container{
		OCIVersion: specs.Version, ID: n.options.ID, Bundle: n.bundle, Rootfs: n.plan.Shares[0].HostPath,
		Created: time.Now().UTC(), Owner: owner(), Saved: state.Creating, Creator: self,
		Annotations: spec.Annotations, Accel: string(n.boot.Machine.Accel),
		Hooks: spec.Hooks, Process: spec.Process,
	}, nil
}

// warn logs the warnings. It is called only after success, because podman does not understand a
// log with more than the one line of an error.
func (n *creation) warn() {
	for _, w := range n.warnings {
		logrus.Warn(w)
	}
	for controller, why := range n.container.Cgroup.Skipped {
		logrus.Warnf("cgroup: not joined for %s: %s", controller, why)
	}
}

// convert makes the plan. It returns an error if another container on this host prevents the
// new one.
func (n *creation) convert(spec *specs.Spec) error {
	env, err := hostEnv(n.options.ID, n.bundle)
	if err != nil {
		return err
	}
	if n.plan, err = specconv.Convert(env, spec); err != nil {
		return err
	}
	n.boot.Plan = n.plan
	if err := refuseSharing(n.options.Root, spec); err != nil {
		return err
	}
	occupied, err := refuseOccupied(spec)
	if err != nil {
		return err
	}
	n.warnings = slices.Concat(n.plan.Warnings, occupied)
	if n.plan.Seccomp != nil {
		logrus.Debugf("seccomp filter flags: %d", n.plan.Seccomp.Flags)
	}
	return nil
}

// hostEnv returns what specconv needs to know about this host.
func hostEnv(id, bundle string) (specconv.Env, error) {
	limits, err := caller.Rlimits()
	return specconv.Env{ID: id, Bundle: bundle, MemoryMiB: hostMemoryMiB(), CPUs: runtime.NumCPU(), Rlimits: limits}, err
}

// refuseExisting returns an error for an invalid or used id before anything is done.
// state.Create checks again, atomically.
func refuseExisting(root, id string) error {
	switch _, err := state.Find(root, id); {
	case err == nil:
		return state.ErrExist
	case errors.Is(err, state.ErrNotExist):
		return nil
	default:
		return err
	}
}

func owner() string {
	u, err := user.LookupId(strconv.Itoa(os.Getuid()))
	if err != nil {
		return ""
	}
	return u.Username
}

// creation is one container while it is being made, with what has to be undone if that fails.
type creation struct {
	options   *Options
	bundle    string // absolute
	plan      *specconv.Plan
	warnings  []string // for the user, when the container is made
	container *state.Container
	boot      supervisor.Bootstrap
	passed    []launch.NamedFile // passed descriptors for the container's process
	console   *os.File           // receives the pty's master; nil: nothing does

	dir     *state.Dir
	child   *launch.Child
	standIn *launch.Child // the container's pid; nil: child is
}

// pidHolder returns the process whose pid is the container's.
func (n *creation) pidHolder() *os.Process {
	if n.standIn != nil {
		return n.standIn.Process
	}
	return n.child.Process
}

// run makes the container. If it fails, it undoes what it has done.
func (n *creation) run(ctx context.Context) (_ *os.Process, err error) {
	if n.dir, err = state.Create(n.options.Root, n.container); err != nil {
		return nil, err
	}
	defer n.dir.Close()
	relay := control.FollowLog(n.dir)
	defer func() {
		relay()
		if err != nil {
			n.undo(context.WithoutCancel(ctx))
		}
	}()
	timings.Lap(ctx, "make state directory")
	if err = n.launch(ctx); err != nil {
		return nil, err
	}
	if hooks.AtCreate(n.container.Hooks) {
		if err = n.runHooks(ctx); err != nil {
			return nil, err
		}
		timings.Lap(ctx, "hooks")
	}
	n.expect(n.container.Hooks)
	report, err := n.child.Wait()
	if err != nil {
		return nil, fmt.Errorf("unable to start container process: %w", err)
	}
	timings.From(ctx).Add(report.Phases...)
	n.warnings = append(n.warnings, report.Warnings...)
	timings.Lap(ctx, "wait for supervisor")
	dropped, err := limits.Set(n.container.Cgroup, n.plan.Shadow.Resources, n.pidHolder().Pid)
	if err != nil {
		return nil, fmt.Errorf("unable to start container process: %w", err)
	}
	for _, d := range dropped {
		n.warnings = append(n.warnings, d.String())
	}
	timings.Lap(ctx, "host limits")
	if err = caller.SendPidfd(n.options.PidfdSocket, n.pidHolder().Pid, caller.PidfdContainer); err != nil {
		return nil, err
	}
	if n.options.PidFile != "" {
		if err = caller.WritePIDFile(n.options.PidFile, n.pidHolder().Pid); err != nil {
			return nil, err
		}
	}
	if err = n.child.Commit(); err != nil {
		return nil, err
	}
	if n.standIn != nil {
		if err = n.standIn.Commit(); err != nil {
			return nil, err
		}
	}
	timings.Lap(ctx, "pid file, commit")
	return n.pidHolder(), nil
}

// expect bounds the time that the supervisor may take from now on. It includes a clone and then
// a boot that both fail, and the hooks that the supervisor runs.
func (n *creation) expect(own *specs.Hooks) {
	const slack = time.Minute
	more, bounded := hooks.Timeout(hooks.Of(own).CreateContainer)
	if !bounded {
		n.child.Expect(0)
		return
	}
	n.child.Expect(more + slack + 5*n.boot.Machine.BootTimeout)
}

// runHooks runs prestart and createRuntime hooks while the guest boots. The namespaces and
// mounts that they look for exist by then. The supervisor runs the createContainer hooks after
// them.
func (n *creation) runHooks(ctx context.Context) error {
	if err := n.child.WaitPrepared(); err != nil {
		return fmt.Errorf("unable to start container process: %w", err)
	}
	all, st := hooks.Of(n.container.Hooks), n.container.OCI(state.Created)
	if err := hooks.Run(ctx, all.Prestart, "prestart", st, st.Bundle); err != nil { //nolint:staticcheck // deprecated, and what Docker before 28 wires its networks with
		return err
	}
	if err := hooks.Run(ctx, all.CreateRuntime, "createRuntime", st, st.Bundle); err != nil {
		return err
	}
	// A supervisor that has ended has reported why.
	_ = n.child.Proceed()
	return nil
}

// undo undoes what run has done. It ignores errors, because the error that made it necessary is
// the one to report.
func (n *creation) undo(ctx context.Context) {
	if n.standIn != nil {
		n.standIn.Abort() // first, because the supervisor ends with it
	}
	if n.child != nil {
		n.child.Abort()
	}
	if n.options.PidFile != "" {
		os.Remove(n.options.PidFile)
	}
	if err := lifecycle.Remove(ctx, n.dir, n.container); err != nil {
		logrus.Debugf("undo create: %v", err)
	}
}
