package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/nsfork"
)

// newContainer makes a container, up to the status created, from the flags that
// create and run share. console is the connected console socket where there is
// one. It returns the supervisor and whether the container has a terminal. On
// error nothing is left.
func newContainer(c *cli.Context, id string, detach bool, console *os.File) (_ *os.Process, terminal bool, err error) {
	if os.Geteuid() != 0 {
		return nil, false, errors.New("husk needs root: rootless containers are not supported yet")
	}
	bundle, err := filepath.Abs(c.String("bundle"))
	if err != nil {
		return nil, false, fmt.Errorf("resolve bundle: %w", err)
	}
	spec, err := specconv.Load(bundle)
	if err != nil {
		return nil, false, err
	}
	if err := refuseExisting(c.String("root"), id); err != nil {
		return nil, false, err
	}
	activated := activate(spec.Process)
	plan, err := planOf(c, id, bundle, spec)
	if err != nil {
		return nil, false, err
	}
	timings.Lap(c.Context, "read config.json")
	kinds, passed, err := passedDescriptors(c, activated)
	if err != nil {
		return nil, false, err
	}
	defer closeFiles(passed)
	terminal = spec.Process.Terminal
	if err := checkTerminal(terminal, detach, c.String("console-socket") != ""); err != nil {
		return nil, false, err
	}
	if console, err = dialConsole(c.String("console-socket"), console); err != nil {
		return nil, false, err
	}
	settings, err := config.Load(c.String("config"))
	if err != nil {
		return nil, false, err
	}
	walls, err := wallsOf(settings, plan)
	if err != nil {
		return nil, false, err
	}
	machine, err := newMachine(c, settings, plan, spec.Annotations)
	if err != nil {
		return nil, false, err
	}
	timings.Lap(c.Context, "settings, kernel, template")
	self, err := state.ProcessOf(os.Getpid())
	if err != nil {
		return nil, false, err
	}
	n := &creation{
		plan: plan, pidFile: c.String("pid-file"), passed: passed,
		container: &state.Container{
			OCIVersion: specs.Version, ID: id, Bundle: bundle, Rootfs: plan.Shares[0].HostPath,
			Created: time.Now().UTC(), Owner: owner(), Saved: state.Creating, Creator: self,
			Annotations: spec.Annotations, Accel: string(machine.Accel),
			Hooks: spec.Hooks, Process: spec.Process,
		},
		boot: supervisor.Bootstrap{
			Plan: plan, Machine: *machine, Walls: *walls, FailuresDir: settings.Failures, Build: build, Debug: c.Bool("debug"),
			Terminal: terminal, ConsoleSize: spec.Process.ConsoleSize, BareNewlines: !detach,
			Descriptors: kinds,
		},
	}
	process, err := n.run(c, console)
	if err != nil {
		return nil, false, err
	}
	// Only now: a log that holds more than the one line of an error is not
	// understood by podman.
	for _, w := range plan.Warnings {
		logrus.Warn(w)
	}
	for controller, why := range n.container.Cgroup.Skipped {
		logrus.Warnf("cgroup: not joined for %s: %s", controller, why)
	}
	return process, terminal, nil
}

// planOf converts a spec and refuses what other containers on this host stand against.
func planOf(c *cli.Context, id, bundle string, spec *specs.Spec) (*specconv.Plan, error) {
	env, err := hostEnv(id, bundle)
	if err != nil {
		return nil, err
	}
	plan, err := specconv.Convert(env, spec)
	if err != nil {
		return nil, err
	}
	if err := refuseSharing(c.String("root"), spec); err != nil {
		return nil, err
	}
	occupied, err := refuseOccupied(spec)
	if err != nil {
		return nil, err
	}
	plan.Warnings = append(plan.Warnings, occupied...)
	if plan.Seccomp != nil {
		logrus.Debugf("seccomp filter flags: %d", plan.Seccomp.Flags)
	}
	return plan, nil
}

// hostEnv is what specconv knows of this host.
func hostEnv(id, bundle string) (specconv.Env, error) {
	limits, err := callersRlimits()
	return specconv.Env{ID: id, Bundle: bundle, MemoryMiB: hostMemoryMiB(), CPUs: runtime.NumCPU(), Rlimits: limits}, err
}

// refuseExisting finds a bad or taken id before anything is done for it.
// state.Create decides for good.
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

// creation is one container on its way to the status created, with what there
// is to undo.
type creation struct {
	plan      *specconv.Plan
	container *state.Container
	boot      supervisor.Bootstrap
	pidFile   string
	passed    []launch.NamedFile // for the container's process

	dir     *state.Dir
	child   *launch.Child
	standIn *launch.Child // the container's pid; nil: child is
}

// process is the one that the container is known by.
func (n *creation) process() *os.Process {
	if n.standIn != nil {
		return n.standIn.Process
	}
	return n.child.Process
}

// run does it. On error it undoes what it did.
func (n *creation) run(c *cli.Context, console *os.File) (_ *os.Process, err error) {
	if n.dir, err = state.Create(c.String("root"), n.container); err != nil {
		return nil, err
	}
	defer n.dir.Close()
	defer func() {
		if err != nil {
			n.undo()
		}
	}()
	timings.Lap(c.Context, "make state directory")
	if err = n.launch(c, console); err != nil {
		return nil, err
	}
	if hooks.AtCreate(n.container.Hooks) {
		if err = n.runHooks(c.Context); err != nil {
			return nil, err
		}
		timings.Lap(c.Context, "hooks")
	}
	n.expect(n.container.Hooks)
	report, err := n.child.Wait()
	if err != nil {
		return nil, fmt.Errorf("unable to start container process: %w", err)
	}
	timings.From(c.Context).Add(report.Phases...)
	n.plan.Warnings = append(n.plan.Warnings, report.Warnings...)
	timings.Lap(c.Context, "wait for supervisor")
	if err = n.limit(); err != nil {
		return nil, fmt.Errorf("unable to start container process: %w", err)
	}
	timings.Lap(c.Context, "host limits")
	if err = sendPidfd(c.String("pidfd-socket"), n.process().Pid, pidfdContainer); err != nil {
		return nil, err
	}
	if n.pidFile != "" {
		if err = writePIDFile(n.pidFile, n.process().Pid); err != nil {
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
	timings.Lap(c.Context, "pid file, commit")
	return n.process(), nil
}

// expect bounds what the supervisor may take from here on, a waking and a boot that both
// fail included, and those hooks that are its to run.
func (n *creation) expect(own *specs.Hooks) {
	const slack = time.Minute
	more, bounded := hooks.Timeout(hooks.Of(own).CreateContainer)
	if !bounded {
		n.child.Expect(0)
		return
	}
	n.child.Expect(more + slack + 5*n.boot.Machine.BootTimeout)
}

// procName is what /proc calls the namespaces a supervisor shows in place of those
// it works in.
var procName = map[specs.LinuxNamespaceType]string{specs.MountNamespace: "mnt", specs.NetworkNamespace: "net"}

// launch starts the supervisor, saves who it is, puts it into its cgroup before
// it has any child, and tells it what to do.
func (n *creation) launch(c *cli.Context, console *os.File) (err error) {
	opts := launch.Options{
		Role: launch.Supervisor, Args: n.plan.Shadow.Args,
		Namespaces: n.plan.Shadow.Namespaces, Console: console,
	}
	if !n.boot.Terminal {
		// With a terminal they are the engine's own pipes, whose end it waits for.
		opts.Stdin, opts.Stdout, opts.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	if opts.Files, err = idMapFiles(n.plan.Shares); err != nil {
		return err
	}
	// With what is added below: a stand-in waits for the last copy of its connection to
	// be closed.
	defer func() { closeFiles(opts.Files) }()
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
	timings.Lap(c.Context, "start supervisor")
	pid := n.process().Pid
	if n.container.Supervisor, err = state.ProcessOf(pid); err != nil {
		return err
	}
	if n.container.Cgroup, err = cgroup.New(n.container.ID, n.plan.Shadow.CgroupsPath, c.Bool("systemd-cgroup")); err != nil {
		return err
	}
	n.planLimits()
	// Saved before it exists, so that whatever ends this process now, delete
	// knows what to remove.
	if err = n.dir.Save(n.container); err != nil {
		return err
	}
	if err = n.container.Cgroup.Join(pid); err != nil {
		return err
	}
	// Who becomes the supervisor: pid itself, unless that is a stand-in.
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
		n.plan.Shadow.Face = nil
	}
	for i, ns := range n.plan.Shadow.Face {
		if ns.Path == "" {
			// This process's own, which outlasts the supervisor's setting up.
			n.plan.Shadow.Face[i].Path = fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), procName[ns.Type])
		}
	}
	if err = moveDevices(n.plan.Shadow.NetDevices, pid); err != nil {
		return err
	}
	// With v1 that is every container of Docker's, and the move would cost each an
	// eighth of its start.
	if n.plan.SeesCgroup() && n.container.Cgroup.IsV2() {
		if n.plan.Guest.Linux.CgroupsPath, err = n.container.Cgroup.Name(); err != nil {
			return err
		}
	}
	n.boot.StateDir = n.dir.Path
	n.boot.Container = n.container
	timings.Lap(c.Context, "cgroup")
	n.expect(nil)
	return n.child.Bootstrap(n.boot)
}

// moveDevices moves interfaces into the network namespace of a process that waits.
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

// idMapFiles makes the user namespaces whose mappings the id-mapped shares get.
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

func closeFiles(files []launch.NamedFile) {
	for _, f := range files {
		f.File.Close()
	}
}

// runHooks runs prestart and createRuntime hooks while the guest boots: the
// namespaces and mounts they look for are there. Those of createContainer are the
// supervisor's to run, after these.
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
	// A supervisor that has ended meanwhile has said why.
	_ = n.child.Proceed()
	return nil
}

// undo takes back what run did. It returns nothing: the error that made it
// necessary is the one to tell.
func (n *creation) undo() {
	if n.standIn != nil {
		n.standIn.Abort() // first: the supervisor ends with it
	}
	if n.child != nil {
		n.child.Abort()
	}
	if n.pidFile != "" {
		os.Remove(n.pidFile)
	}
	if err := removeContainer(context.Background(), n.dir, n.container); err != nil {
		logrus.Debugf("undo create: %v", err)
	}
}

// writePIDFile writes by rename, since its reader may look at any moment.
func writePIDFile(path string, pid int) error {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(temp, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return fmt.Errorf("write pid file: %w", err)
	}
	return nil
}
