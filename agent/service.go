package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"path"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/libcontainer"
	"github.com/huskvm/husk/protocol"
)

// drainStall bounds how long Wait waits, after its process has ended, for output that makes no
// progress towards the host.
const drainStall = 10 * time.Second

// Create makes a container whose first process waits just before execve.
func (a *agent) Create(_ context.Context, r *protocol.CreateRequest) (*protocol.CreateResponse, error) {
	if err := checkID(r.ContainerId); err != nil {
		return nil, err
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(r.Spec, spec); err != nil {
		return nil, fmt.Errorf("read container's spec: %w", err)
	}
	began := time.Now()
	if err := loadDrivers(spec, demandFile, sysDevices); err != nil {
		return nil, err
	}
	if err := plugDisks(spec, r.Disks, demandFile, sysBlock); err != nil {
		return nil, err
	}
	if err := a.mountShare(r.Share); err != nil {
		return nil, err
	}
	shared := time.Now()
	if err := a.reserve(r.ContainerId); err != nil {
		return nil, err
	}
	c, err := a.create(r, spec)
	a.set(r.ContainerId, c)
	if err != nil {
		return nil, err
	}
	forked := c.c.Init().Forked()
	return &protocol.CreateResponse{
		ShareNanos: shared.Sub(began).Nanoseconds(),
		SetupNanos: forked.Sub(shared).Nanoseconds(),
		StageNanos: time.Since(forked).Nanoseconds(),
	}, nil
}

// create makes the container. With an error it returns nil.
func (a *agent) create(r *protocol.CreateRequest, spec *specs.Spec) (_ *container, err error) {
	id := r.ContainerId
	cfg := &libcontainer.Config{
		ID: id, Spec: spec, Bundle: r.Bundle, BareNewlines: r.BareNewlines, Prepared: a.takePrepared(),
	}
	if f := r.Seccomp; f != nil {
		cfg.Seccomp = &libcontainer.SeccompFilter{Program: f.Program, Flags: f.Flags}
	}
	if a.machine.cgroupParent != "" {
		cfg.CgroupPath = path.Join(a.machine.cgroupParent, id)
		if l := spec.Linux; l != nil && l.CgroupsPath != "" {
			cfg.CgroupPath = l.CgroupsPath
		}
	}
	prepared := cfg.Prepared
	passed, err := openDescriptors(r.Descriptors)
	if err != nil {
		return nil, err
	}
	defer closeTheirs(passed)
	defer func() {
		if err != nil {
			closeOurs(passed)
		}
	}()
	cfg.Descriptors = theirs(passed)
	c := &container{id: id, processes: make(map[string]*process)}
	if r.NotifyPath != "" {
		if c.notify, err = listenNotify(path.Join(runDir, "notify"), id); err != nil {
			return nil, err
		}
		spec.Mounts = append(spec.Mounts, c.notify.mount(r.NotifyPath))
	}
	err = a.machine.children.start(func() (pid int, err error) {
		if c.c, err = libcontainer.Create(cfg); err != nil {
			return 0, err
		}
		return c.c.Init().PID(), nil
	})
	if prepared != nil && cfg.Prepared == nil {
		a.machine.children.release(prepared.PID()) // it did not fit, and libcontainer has discarded it
	}
	if err != nil {
		return nil, err
	}
	if a.machine.containersMemory > 0 {
		// For a cgroup outside of the agent's own parent no limit has been set yet.
		err = boundMemory(cgroupRoot, cfg.CgroupPath, a.machine.containersMemory)
	}
	var p *process
	if err == nil {
		p, err = watch(c.c.Init(), passed, a.machine.children, false)
	}
	if err != nil {
		return nil, errors.Join(err, c.c.Destroy())
	}
	c.set(protocol.InitProcess, p)
	return c, nil
}

// checkID refuses an id that is not a valid path element.
func checkID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > 255 || path.Base(id) != id {
		return status.Errorf(codes.InvalidArgument, "container id %q is not valid", id)
	}
	return nil
}

// Network gives the container exactly these interfaces, settings and packet filter rules. If
// the container has no network namespace of its own, the guest's namespace gets them.
func (a *agent) Network(_ context.Context, r *protocol.NetworkRequest) (*protocol.NetworkResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	c.network.Lock()
	defer c.network.Unlock()
	if err := c.policy.Prepare(c.c.NetNS(), r.Sysctls); err != nil {
		return nil, fmt.Errorf("carry the network namespace's settings: %w", err)
	}
	if err := c.cards.Apply(c.c.NetNS(), r.Interfaces); err != nil {
		return nil, fmt.Errorf("configure network: %w", err)
	}
	unset, err := c.policy.Apply(c.c.NetNS(), r.Sysctls, r.Nftables)
	if err != nil {
		return nil, fmt.Errorf("carry the network namespace's packet filter: %w", err)
	}
	return &protocol.NetworkResponse{Unset: unset}, nil
}

// Start lets the container's first process execute its program.
func (a *agent) Start(_ context.Context, r *protocol.StartRequest) (*protocol.StartResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	if err := c.c.Start(); err != nil {
		return nil, err
	}
	return &protocol.StartResponse{}, nil
}

// Exec starts one more process in the container. The host opens the process's streams
// afterwards.
func (a *agent) Exec(_ context.Context, r *protocol.ExecRequest) (*protocol.ExecResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	if r.ProcessId == "" || len(r.ProcessId) > 255 {
		return nil, status.Errorf(codes.InvalidArgument, "process id %q is not valid", r.ProcessId)
	}
	spec := &specs.Process{}
	if err := json.Unmarshal(r.Process, spec); err != nil {
		return nil, fmt.Errorf("read process's spec: %w", err)
	}
	if err := c.reserve(r.ProcessId); err != nil {
		return nil, err
	}
	p, err := a.exec(c, spec, r)
	c.set(r.ProcessId, p)
	if err != nil {
		return nil, err
	}
	return &protocol.ExecResponse{}, nil
}

func (a *agent) exec(c *container, spec *specs.Process, r *protocol.ExecRequest) (_ *process, err error) {
	passed, err := openDescriptors(r.Descriptors)
	if err != nil {
		return nil, err
	}
	defer closeTheirs(passed)
	defer func() {
		if err != nil {
			closeOurs(passed)
		}
	}()
	var p *libcontainer.Process
	err = a.machine.children.start(func() (pid int, err error) {
		if p, err = c.c.Exec(spec, r.BareNewlines, theirs(passed)...); err != nil {
			return 0, err
		}
		return p.PID(), nil
	})
	if err != nil {
		return nil, err
	}
	w, err := watch(p, passed, a.machine.children, true)
	if err != nil {
		return nil, errors.Join(err, p.Signal(unix.SIGKILL))
	}
	return w, nil
}

// Wait answers when the process has ended, and the host has got everything that it wrote or has
// stopped reading. The answer lists the outputs that other processes still hold open. An exec'd
// process is forgotten afterwards.
func (a *agent) Wait(ctx context.Context, r *protocol.WaitRequest) (*protocol.WaitResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	p, err := c.process(r.ProcessId)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.stdio.drain(drainStall, ctx.Done())
	held := p.stdio.held()
	if r.ProcessId == protocol.InitProcess {
		c.notify.end()
	}
	if err := a.syncShare(); err != nil {
		log.Print(err)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err() // nobody gets the answer, so the status is kept for the next Wait
	}
	if r.ProcessId != protocol.InitProcess {
		p.stdio.release()
		c.set(r.ProcessId, nil)
	}
	if p.err != nil {
		return nil, fmt.Errorf("wait for process: %w", p.err)
	}
	return &protocol.WaitResponse{ExitCode: uint32(p.status.Code), OomKilled: p.status.OOMKilled, Held: held}, nil
}

// Kill sends a signal to one process, or to all processes of the container.
func (a *agent) Kill(ctx context.Context, r *protocol.KillRequest) (*protocol.KillResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	if r.Signal > 64 {
		return nil, status.Errorf(codes.InvalidArgument, "signal %d is not valid", r.Signal)
	}
	sig := unix.Signal(r.Signal)
	if r.All {
		err = c.c.Kill(sig, true)
	} else {
		var p *process
		if p, err = c.process(r.ProcessId); err == nil {
			if r.ProcessId == protocol.InitProcess {
				p.p.AwaitHandler(ctx, sig)
			}
			err = p.signal(sig)
		}
	}
	if err != nil {
		return nil, err
	}
	return &protocol.KillResponse{}, nil
}

// Resize sets the window size of a process's terminal.
func (a *agent) Resize(_ context.Context, r *protocol.ResizeRequest) (*protocol.ResizeResponse, error) {
	p, err := a.process(r.ContainerId, r.ProcessId)
	if err != nil {
		return nil, err
	}
	const most = 1<<16 - 1
	if err := p.p.Resize(uint16(min(r.Rows, most)), uint16(min(r.Columns, most))); err != nil {
		return nil, fmt.Errorf("resize terminal: %w", err)
	}
	return &protocol.ResizeResponse{}, nil
}

// Pause freezes every process of the container.
func (a *agent) Pause(_ context.Context, r *protocol.PauseRequest) (*protocol.PauseResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	if err := c.c.Pause(); err != nil {
		return nil, fmt.Errorf("pause container: %w", err)
	}
	return &protocol.PauseResponse{}, nil
}

// Resume thaws every process of the container.
func (a *agent) Resume(_ context.Context, r *protocol.ResumeRequest) (*protocol.ResumeResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	if err := c.c.Resume(); err != nil {
		return nil, fmt.Errorf("resume container: %w", err)
	}
	return &protocol.ResumeResponse{}, nil
}

// Update changes the limits that the request has.
func (a *agent) Update(_ context.Context, r *protocol.UpdateRequest) (*protocol.UpdateResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	resources := &specs.LinuxResources{}
	if err := json.Unmarshal(r.Resources, resources); err != nil {
		return nil, fmt.Errorf("read resources: %w", err)
	}
	if err := c.c.Update(resources); err != nil {
		return nil, fmt.Errorf("update container: %w", err)
	}
	return &protocol.UpdateResponse{}, nil
}
