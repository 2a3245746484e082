package create

import (
	"context"
	"fmt"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/cgroup"
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

// launch starts the supervisor and sends it its bootstrap. The order of the steps is important:
//
//  1. start: the supervisor waits, and has done nothing yet.
//  2. save: before the cgroups exist, so that delete knows what to remove if this process is
//     killed from now on.
//  3. enterCgroups: before the supervisor has children, which would stay outside.
//  4. release: only now a supervisor beside a stand-in is started, because it is born in the
//     cgroups of its parent.
//  5. moveDevices: after the network namespace exists, and before the supervisor looks for
//     interfaces there.
//  6. bootstrap: last, because the supervisor begins to work when it has its bootstrap.
func (n *creation) launch(ctx context.Context) error {
	if err := n.start(); err != nil {
		return err
	}
	timings.Lap(ctx, "start supervisor")
	if err := n.save(); err != nil {
		return err
	}
	n.debugPlace()
	if err := n.enterCgroups(); err != nil {
		return err
	}
	if err := n.release(); err != nil {
		return err
	}
	if err := moveDevices(n.plan.Shadow.NetDevices, n.pidHolder().Pid); err != nil {
		return err
	}
	timings.Lap(ctx, "cgroup")
	return n.bootstrap()
}

// start starts the supervisor's process. With a user namespace it starts the stand-in before,
// whose namespaces the supervisor joins, and then a process that starts the supervisor when
// release is called.
func (n *creation) start() (err error) {
	opts := launch.Options{
		Role: launch.Supervisor, Args: n.plan.Shadow.Args,
		Namespaces: n.plan.Shadow.Namespaces, Console: n.console,
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
	n.child, err = launch.Start(opts)
	return err
}

// save saves the container's pid, and the names of the cgroups that enterCgroups makes.
func (n *creation) save() (err error) {
	if n.container.Supervisor, err = state.ProcessOf(n.pidHolder().Pid); err != nil {
		return err
	}
	if n.container.Cgroup, err = cgroup.New(n.container.ID, n.plan.Shadow.CgroupsPath, n.options.SystemdCgroup); err != nil {
		return err
	}
	limits.Note(n.container.Cgroup, n.plan.Shadow.Resources, &n.boot.Machine)
	return n.dir.Save(n.container)
}

// enterCgroups makes the cgroups and moves the processes that exist by now into them.
func (n *creation) enterCgroups() error {
	group := n.container.Cgroup
	if err := group.Join(n.pidHolder().Pid); err != nil {
		return err
	}
	// The process that becomes the supervisor, or that starts it beside a stand-in.
	starting := n.child.Process.Pid
	if n.standIn != nil {
		if err := group.Add(starting); err != nil {
			return err
		}
	}
	return group.JoinBootGroup(starting)
}

// release starts the supervisor beside a stand-in. Without a stand-in the supervisor has to show
// the face itself.
func (n *creation) release() error {
	if n.standIn != nil {
		return n.child.Release()
	}
	n.boot.Face = faceOf(n.plan.Shadow.Face)
	return nil
}

// bootstrap sends the supervisor its bootstrap.
func (n *creation) bootstrap() (err error) {
	// With cgroup v1 this is true for every container of Docker, and moving it would take an
	// eighth of its start.
	if n.plan.SeesCgroup() && n.container.Cgroup.IsV2() {
		if n.boot.Found.CgroupsPath, err = n.container.Cgroup.Name(); err != nil {
			return err
		}
	}
	n.boot.StateDir = n.dir.Path
	n.boot.Container = n.container
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
