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
	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/lifecycle"
	"github.com/huskvm/husk/host/limits"
	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/linux/namespaces"
	"github.com/huskvm/husk/nsfork"
)

// Options are the options of the verbs create and run.
type Options struct {
	ID     string
	Root   string // absolute directory of the containers' state
	Bundle string // directory of config.json; empty: the working directory
	Config string // path of the settings file; empty: the default one, if it exists
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
func New(ctx context.Context, o Options) (_ *os.Process, terminal bool, err error) {
	if os.Geteuid() != 0 {
		return nil, false, errors.New("husk needs root: rootless containers are not supported yet")
	}
	bundle, err := filepath.Abs(o.Bundle)
	if err != nil {
		return nil, false, fmt.Errorf("resolve bundle: %w", err)
	}
	spec, err := specconv.Load(bundle)
	if err != nil {
		return nil, false, err
	}
	if err := refuseExisting(o.Root, o.ID); err != nil {
		return nil, false, err
	}
	activated := caller.Activate(spec.Process)
	plan, warnings, err := planOf(o.Root, o.ID, bundle, spec)
	if err != nil {
		return nil, false, err
	}
	timings.Lap(ctx, "read config.json")
	kinds, passed, err := caller.Descriptors(o.PreserveFDs + activated)
	if err != nil {
		return nil, false, err
	}
	defer launch.CloseFiles(passed)
	terminal = spec.Process.Terminal
	if err := caller.CheckTerminal(terminal, o.Detach, o.ConsoleSocket != ""); err != nil {
		return nil, false, err
	}
	console, err := caller.DialConsole(o.ConsoleSocket, o.Console)
	if err != nil {
		return nil, false, err
	}
	settings, err := config.Load(o.Config)
	if err != nil {
		return nil, false, err
	}
	walls, err := wallsOf(settings, plan)
	if err != nil {
		return nil, false, err
	}
	chosen, err := choose(ctx, settings, plan, spec.Annotations)
	if err != nil {
		return nil, false, err
	}
	warnings = append(warnings, chosen.Warnings...)
	timings.Lap(ctx, "settings, kernel, template")
	self, err := state.ProcessOf(os.Getpid())
	if err != nil {
		return nil, false, err
	}
	n := &creation{
		options: &o, plan: plan, warnings: warnings, passed: passed,
		container: &state.Container{
			OCIVersion: specs.Version, ID: o.ID, Bundle: bundle, Rootfs: plan.Shares[0].HostPath,
			Created: time.Now().UTC(), Owner: owner(), Saved: state.Creating, Creator: self,
			Annotations: spec.Annotations, Accel: string(chosen.Machine.Accel),
			Hooks: spec.Hooks, Process: spec.Process,
		},
		boot: supervisor.Bootstrap{
			Plan: plan, Found: specconv.Found{CPUs: chosen.CPUs}, Machine: chosen.Machine, Walls: *walls, FailuresDir: settings.Failures, Build: o.Build, Debug: o.Debug,
			Terminal: terminal, ConsoleSize: spec.Process.ConsoleSize, BareNewlines: !o.Detach,
			Descriptors: kinds,
		},
	}
	process, err := n.run(ctx, console)
	if err != nil {
		return nil, false, err
	}
	// Warnings are logged only after success, because podman does not understand a log with
	// more than the one line of an error.
	for _, w := range n.warnings {
		logrus.Warn(w)
	}
	for controller, why := range n.container.Cgroup.Skipped {
		logrus.Warnf("cgroup: not joined for %s: %s", controller, why)
	}
	return process, terminal, nil
}

// planOf converts a spec. It returns an error if another container on this host prevents the
// new one. warnings are those of the plan and of this host.
func planOf(root, id, bundle string, spec *specs.Spec) (_ *specconv.Plan, warnings []string, err error) {
	env, err := hostEnv(id, bundle)
	if err != nil {
		return nil, nil, err
	}
	plan, err := specconv.Convert(env, spec)
	if err != nil {
		return nil, nil, err
	}
	if err := refuseSharing(root, spec); err != nil {
		return nil, nil, err
	}
	occupied, err := refuseOccupied(spec)
	if err != nil {
		return nil, nil, err
	}
	if plan.Seccomp != nil {
		logrus.Debugf("seccomp filter flags: %d", plan.Seccomp.Flags)
	}
	return plan, slices.Concat(plan.Warnings, occupied), nil
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
	plan      *specconv.Plan
	warnings  []string
	container *state.Container
	boot      supervisor.Bootstrap
	passed    []launch.NamedFile // passed descriptors for the container's process

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
func (n *creation) run(ctx context.Context, console *os.File) (_ *os.Process, err error) {
	if n.dir, err = state.Create(n.options.Root, n.container); err != nil {
		return nil, err
	}
	defer n.dir.Close()
	defer func() {
		if err != nil {
			n.undo(context.WithoutCancel(ctx))
		}
	}()
	timings.Lap(ctx, "make state directory")
	if err = n.launch(ctx, console); err != nil {
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

// launch starts the supervisor, saves its pid, moves it into its cgroup before it has children,
// and sends it its bootstrap. The order of the steps is important: each comment says why.
func (n *creation) launch(ctx context.Context, console *os.File) (err error) {
	opts := launch.Options{
		Role: launch.Supervisor, Args: n.plan.Shadow.Args,
		Namespaces: n.plan.Shadow.Namespaces, Console: console,
	}
	if !n.boot.Terminal {
		// With a terminal these are the engine's own pipes, whose end the engine waits for.
		opts.Stdin, opts.Stdout, opts.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	if opts.Files, err = idMapFiles(n.plan.Shares); err != nil {
		return err
	}
	// This includes files that are added below: a stand-in waits until the last copy of its
	// connection is closed.
	defer func() { launch.CloseFiles(opts.Files) }()
	if ids := n.plan.UserNS; ids != nil {
		users, err := nsfork.NewUserNS(ids.VMMText(n.container.ID))
		if err != nil {
			return fmt.Errorf("make user namespace of the vmm: %w", err)
		}
		opts.Files = append(opts.Files, launch.NamedFile{Name: supervisor.FDVMMUsers, File: users})
	}
	opts.Files = append(opts.Files[:len(opts.Files):len(opts.Files)], n.passed...)
	if n.plan.Shadow.UserNS != nil {
		if err = n.startStandIn(&opts); err != nil {
			return err
		}
	}
	if n.child, err = launch.Start(opts); err != nil {
		return err
	}
	timings.Lap(ctx, "start supervisor")
	pid := n.pidHolder().Pid
	if n.container.Supervisor, err = state.ProcessOf(pid); err != nil {
		return err
	}
	if n.container.Cgroup, err = cgroup.New(n.container.ID, n.plan.Shadow.CgroupsPath, n.options.SystemdCgroup); err != nil {
		return err
	}
	limits.Note(n.container.Cgroup, n.plan.Shadow.Resources, &n.boot.Machine)
	// The cgroup is saved before it is made, so that delete knows what to remove if this
	// process is killed now.
	if err = n.dir.Save(n.container); err != nil {
		return err
	}
	if err = n.container.Cgroup.Join(pid); err != nil {
		return err
	}
	// The process that becomes the supervisor: the child itself, unless that is a stand-in.
	starting := n.child.Process.Pid
	if n.standIn != nil {
		if err = n.container.Cgroup.Add(starting); err != nil {
			return err
		}
	}
	if err = n.container.Cgroup.Hold(starting); err != nil {
		return err
	}
	if n.standIn != nil {
		if err = n.child.Release(); err != nil {
			return err
		}
	} else {
		n.boot.Face = faceOf(n.plan.Shadow.Face)
	}
	if err = moveDevices(n.plan.Shadow.NetDevices, pid); err != nil {
		return err
	}
	// With cgroup v1 this is true for every container of Docker, and moving it would take an
	// eighth of its start.
	if n.plan.SeesCgroup() && n.container.Cgroup.IsV2() {
		if n.boot.Found.CgroupsPath, err = n.container.Cgroup.Name(); err != nil {
			return err
		}
	}
	n.boot.StateDir = n.dir.Path
	n.boot.Container = n.container
	timings.Lap(ctx, "cgroup")
	n.expect(nil)
	return n.child.Bootstrap(n.boot)
}

// faceOf returns the namespaces that the supervisor's pid shows at the end, each with a path.
// If the plan has no path, it is that of this process's namespace; this process lives until the
// supervisor has joined it.
func faceOf(planned []specs.LinuxNamespace) []specs.LinuxNamespace {
	face := slices.Clone(planned)
	for i, ns := range face {
		if ns.Path == "" {
			face[i].Path = fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), namespaces.File(ns.Type))
		}
	}
	return face
}

// moveDevices moves interfaces into the network namespace of a waiting process.
func moveDevices(devices []specconv.NetDevice, pid int) error {
	if len(devices) == 0 {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	for _, d := range devices {
		if err := network.Move(d.HostName, d.Name, ns); err != nil {
			return err
		}
	}
	return nil
}

// idMapFiles makes the user namespaces with the mappings of id-mapped shares.
func idMapFiles(shares []specconv.Share) (files []launch.NamedFile, err error) {
	for _, s := range shares {
		if s.IDMap == nil {
			continue
		}
		f, err := nsfork.NewUserNS(s.IDMap.Text())
		if err != nil {
			return files, fmt.Errorf("failed to create userns for %s id-mapping: %w", s.HostPath, err)
		}
		files = append(files, launch.NamedFile{Name: supervisor.IDMapFile(s), File: f})
	}
	return files, nil
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
