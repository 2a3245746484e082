// Package exec runs one more process in a container. It makes the exec process, which on the
// host stands for the process in the guest.
package exec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/caller"
	"github.com/huskvm/husk/host/limits"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/supervisor/execprocess"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/linux/namespaces"
)

// Options are the options of the verb exec.
type Options struct {
	ID      string
	Root    string // directory of the containers' state
	Process Process
	// Detach: the caller does not wait for the process.
	Detach bool
	// ConsoleSocket is the path of the engine's unix socket that receives the pty's master. If
	// it is empty, Console receives it: one end of a socket pair of the caller, nil if there is
	// none.
	ConsoleSocket string
	Console       *os.File
	PidfdSocket   string   // path of a unix socket that receives a pidfd; empty: none
	PidFile       string   // empty: none
	PreserveFDs   int      // number of descriptors from 3 on that the process gets
	IgnorePaused  bool     // wait until a paused container is resumed
	Cgroups       []string // refused: the guest has only the container's own cgroup
}

// Start returns the exec process when the process in the guest runs, and whether that process
// has a terminal.
func Start(ctx context.Context, o Options) (_ *os.Process, terminal bool, err error) {
	dir, err := state.Open(o.Root, o.ID)
	if err != nil {
		return nil, false, err
	}
	defer dir.Close()
	container, err := dir.Load()
	if err != nil {
		return nil, false, err
	}
	status := container.Status()
	if err := state.Allowed(state.Exec, o.ID, status); err != nil && (!o.IgnorePaused || status != state.Paused) {
		return nil, false, err
	}
	if len(o.Cgroups) > 0 {
		return nil, false, errors.New("--cgroup: a process joins the container's cgroup in the guest, no other is supported")
	}
	process, warnings, err := o.Process.guest(container.Process)
	if err != nil {
		return nil, false, err
	}
	if err := caller.CheckTerminal(process.Terminal, o.Detach, o.ConsoleSocket != ""); err != nil {
		return nil, false, err
	}
	if o.Console, err = caller.DialConsole(o.ConsoleSocket, o.Console); err != nil {
		return nil, false, err
	}
	child, err := start(ctx, &o, dir, container, process)
	if err != nil {
		return nil, false, err
	}
	for _, w := range warnings {
		logrus.Warn(w)
	}
	return child.Process, process.Terminal, nil
}

// start makes the exec process in the supervisor's namespaces. It returns when the process in
// the guest runs.
func start(ctx context.Context, o *Options, dir *state.Dir, container *state.Container, process *specs.Process) (_ *launch.Child, err error) {
	if err = limits.MakeRoom(ctx, dir, container); err != nil {
		return nil, err
	}
	opts := launch.Options{
		Role: launch.Exec, Args: process.Args, Console: o.Console,
		Namespaces: supervisorNamespaces(container.Supervisor.PID),
	}
	kinds, files, err := caller.Descriptors(o.PreserveFDs)
	if err != nil {
		return nil, err
	}
	opts.Files = files
	defer launch.CloseFiles(files)
	if !process.Terminal {
		opts.Stdin, opts.Stdout, opts.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	child, err := launch.Start(opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			child.Abort()
		}
	}()
	boot := execprocess.Bootstrap{
		StateDir: dir.Path, ContainerID: container.ID, SupervisorPID: container.Supervisor.PID,
		Terminal: process.Terminal, ConsoleSize: process.ConsoleSize, IgnorePaused: o.IgnorePaused, BareNewlines: !o.Detach,
		Descriptors: kinds, Detach: o.Detach,
	}
	if boot.Self, err = state.ProcessOf(child.Process.Pid); err != nil {
		return nil, err
	}
	if boot.Process, err = json.Marshal(process); err != nil {
		return nil, fmt.Errorf("encode process: %w", err)
	}
	if !boot.IgnorePaused { // it would wait until the container is resumed
		child.Expect(2 * control.AnswerTimeout)
	}
	if err = child.Bootstrap(boot); err != nil {
		return nil, err
	}
	// This is done while the process starts: an exec process has no children that must start in
	// the cgroup, and the kernel needs some time for a move.
	if container.Cgroup != nil {
		if err = container.Cgroup.Add(child.Process.Pid); err != nil {
			return nil, err
		}
	}
	if _, err = child.Wait(); err != nil {
		return nil, fmt.Errorf("unable to start container process: %w", err)
	}
	if err = caller.SendPidfd(o.PidfdSocket, child.Process.Pid, caller.PidfdExec); err != nil {
		return nil, err
	}
	if o.PidFile != "" {
		if err = caller.WritePIDFile(o.PidFile, child.Process.Pid); err != nil {
			return nil, err
		}
	}
	return child, child.Commit()
}

// supervisorNamespaces returns the namespaces in which the exec process is made. It enters the
// mount namespace itself, at the end.
func supervisorNamespaces(hostPID int) []specs.LinuxNamespace {
	var all []specs.LinuxNamespace
	for _, t := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace,
	} {
		all = append(all, specs.LinuxNamespace{Type: t, Path: fmt.Sprintf("/proc/%d/ns/%s", hostPID, namespaces.File(t))})
	}
	return all
}
