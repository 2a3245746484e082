package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/protocol"
)

// Start gives the guest the interfaces that are in the network namespace by
// now, then releases the container's process.
func (s *supervisor) Start(ctx context.Context, _ *control.StartRequest) (*control.StartResponse, error) {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	if err := s.allowed(state.Start); err != nil {
		return nil, err
	}
	ctx, cancel := startTimeout(ctx, s.boot.Plan.Guest.Hooks)
	defer cancel()
	phases := timings.New("supervisor")
	if err := s.network.Wire(ctx); err != nil {
		return nil, err
	}
	phases.Lap("network")
	saved, err := s.stageStatus(state.Running)
	if err != nil {
		return nil, err
	}
	defer saved.cancel()
	if _, err := s.machine.Agent().Start(ctx, &protocol.StartRequest{ContainerId: s.container.ID}); err != nil {
		return nil, err
	}
	phases.Lap("execve")
	s.followOOM() //nolint:contextcheck // it outlives the call
	saved.commit()
	phases.Lap("save state")
	s.network.Follow() //nolint:contextcheck // it outlives the call
	return &control.StartResponse{Phases: control.FromPhases(phases.Phases())}, nil
}

// startTimeout gives hooks that run in the guest the time they may take: without
// a timeout of their own that is any, and a kill ends it.
func startTimeout(ctx context.Context, h *specs.Hooks) (context.Context, context.CancelFunc) {
	more, bounded := hooks.Timeout(hooks.Of(h).StartContainer)
	if !bounded {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, callTimeout+more)
}

// followSize returns what to do when the terminal has a new size, and does it
// once; nil without a terminal.
func (s *supervisor) followSize() func() {
	if s.pty == nil {
		return nil
	}
	follow := func() {
		rows, columns, err := s.pty.Size()
		if err == nil && rows > 0 && columns > 0 {
			err = s.resize(context.Background(), protocol.InitProcess, rows, columns)
		}
		if err != nil {
			s.log.WithError(err).Warn("follow window size")
		}
	}
	follow()
	return follow
}

func (s *supervisor) resize(ctx context.Context, processID string, rows, columns uint32) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.machine.Agent().Resize(ctx, &protocol.ResizeRequest{
		ContainerId: s.container.ID, ProcessId: processID, Rows: rows, Columns: columns,
	})
	if err != nil {
		return err
	}
	return nil
}

// Resize sets the window size of an exec'd process's terminal.
func (s *supervisor) Resize(ctx context.Context, req *control.ResizeRequest) (*control.ResizeResponse, error) {
	if err := s.resize(ctx, req.ProcessId, req.Rows, req.Columns); err != nil {
		return nil, err
	}
	return &control.ResizeResponse{}, nil
}

// Pause freezes every process of the container.
func (s *supervisor) Pause(ctx context.Context, _ *control.PauseRequest) (*control.PauseResponse, error) {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	if err := s.allowed(state.Pause); err != nil {
		return nil, err
	}
	saved, err := s.stageStatus(state.Paused)
	if err != nil {
		return nil, err
	}
	defer saved.cancel()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.machine.Agent().Pause(ctx, &protocol.PauseRequest{ContainerId: s.container.ID}); err != nil {
		return nil, err
	}
	s.beforePause = s.status()
	s.mu.Lock()
	s.resumed = make(chan struct{})
	s.mu.Unlock()
	saved.commit()
	return &control.PauseResponse{}, nil
}

// Resume undoes Pause: the container is created or running again, as it was.
func (s *supervisor) Resume(ctx context.Context, _ *control.ResumeRequest) (*control.ResumeResponse, error) {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	if err := s.allowed(state.Resume); err != nil {
		return nil, err
	}
	saved, err := s.stageStatus(s.beforePause)
	if err != nil {
		return nil, err
	}
	defer saved.cancel()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.machine.Agent().Resume(ctx, &protocol.ResumeRequest{ContainerId: s.container.ID}); err != nil {
		return nil, err
	}
	saved.commit()
	close(s.resumed) // only Pause makes one, and what is not paused is not resumed
	return &control.ResumeResponse{}, nil
}

// Update changes the container's limits in the guest, and saves those that the cli
// has set on the host.
func (s *supervisor) Update(ctx context.Context, req *control.UpdateRequest) (*control.UpdateResponse, error) {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	if err := s.allowed(state.Update); err != nil {
		return nil, err
	}
	if err := s.fits(req.Resources); err != nil {
		return nil, err
	}
	saved, err := s.stageLimits(req.Limits)
	if err != nil {
		return nil, err
	}
	defer saved.cancel()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = s.machine.Agent().Update(ctx, &protocol.UpdateRequest{ContainerId: s.container.ID, Resources: req.Resources})
	if err != nil {
		return nil, err
	}
	saved.commit()
	return &control.UpdateResponse{}, nil
}

// stageLimits stages those that the host has from now on; nothing where there are none.
func (s *supervisor) stageLimits(limits []byte) (*staged, error) {
	if s.container.Cgroup == nil || len(limits) == 0 {
		return s.stage(func(*state.Container) {})
	}
	l := &specs.LinuxResources{}
	if err := json.Unmarshal(limits, l); err != nil {
		return nil, fmt.Errorf("read limits: %w", err)
	}
	return s.stage(func(c *state.Container) {
		g := *c.Cgroup
		g.Limits, c.Cgroup = l, &g
	})
}

// fits refuses a limit that the VM could never give.
func (s *supervisor) fits(resources []byte) error {
	var r specs.LinuxResources
	if err := json.Unmarshal(resources, &r); err != nil {
		return fmt.Errorf("read resources: %w", err)
	}
	vcpus := s.boot.Machine.VCPUs
	if r.CPU != nil && r.CPU.Cpus != "" && specconv.CountCPUs(r.CPU.Cpus) > vcpus {
		return fmt.Errorf("cpu.cpus: %s is more than the virtual machine's %d CPUs, which cannot grow: create the container with more or the annotation %s",
			r.CPU.Cpus, vcpus, specconv.AnnotationVCPUs)
	}
	if r.Memory == nil || r.Memory.Limit == nil {
		return nil
	}
	if ram := int64(s.boot.Machine.MemoryMiB) << 20; *r.Memory.Limit > ram {
		return fmt.Errorf("memory.limit: %d bytes is more than the virtual machine's %d MiB, which cannot grow: create the container with a larger limit or the annotation %s",
			*r.Memory.Limit, s.boot.Machine.MemoryMiB, specconv.AnnotationMemoryMiB)
	}
	return nil
}

// Ps lists the host's processes of this container: this one and its exec
// processes.
func (s *supervisor) Ps(context.Context, *control.PsRequest) (*control.PsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &control.PsResponse{HostPids: []int32{int32(s.container.Supervisor.PID)}}
	for _, e := range s.execs {
		resp.HostPids = append(resp.HostPids, e.hostPID)
	}
	return resp, nil
}

func (s *supervisor) allowed(verb state.Verb) error {
	return state.Allowed(verb, s.container.ID, s.status())
}

var errNoProcess = errors.New("no such process")

// execution is one exec'd process.
type execution struct {
	hostPID int32 // of its exec process
	// orphaned kills it when nobody has come to wait for it in time: its exec
	// process has died in between.
	orphaned *time.Timer
}

// Exec starts one more process in the container.
func (s *supervisor) Exec(ctx context.Context, req *control.ExecRequest) (*control.ExecResponse, error) {
	if err := s.mayExec(ctx, req.IgnorePaused); err != nil {
		return nil, err
	}
	s.network.Refresh() //nolint:contextcheck // the network is everybody's
	s.mu.Lock()
	s.execCount++
	id := fmt.Sprintf("exec-%d", s.execCount)
	s.execs[id] = &execution{hostPID: req.HostPid}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.machine.Agent().Exec(ctx, &protocol.ExecRequest{ContainerId: s.container.ID, ProcessId: id, Process: req.Process, BareNewlines: req.BareNewlines, Descriptors: req.Descriptors})
	if err != nil {
		s.forget(id)
		return nil, err
	}
	s.followOOM() //nolint:contextcheck // it outlives the call
	s.mu.Lock()
	s.execs[id].orphaned = time.AfterFunc(callTimeout, func() { s.endExec(id) }) //nolint:contextcheck // it comes after the call
	s.mu.Unlock()
	return &control.ExecResponse{ProcessId: id}, nil
}

// mayExec waits, where that is asked for, until the container is resumed: a process
// that joins a frozen cgroup does nothing before, as with runc. The wait ends with
// the caller.
func (s *supervisor) mayExec(ctx context.Context, ignorePaused bool) error {
	for {
		err := s.allowed(state.Exec)
		if err == nil || !ignorePaused || s.status() != state.Paused {
			return err
		}
		s.mu.Lock()
		resumed := s.resumed
		s.mu.Unlock()
		select {
		case <-resumed:
		case <-s.over:
			// A container that ends waits for whoever is connected.
			return &state.Error{Verb: state.Exec, ID: s.container.ID, Status: state.Stopped}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// endExec kills an exec'd process that nobody owns any more, and waits for it,
// as the agent keeps its record until then.
func (s *supervisor) endExec(id string) {
	defer s.forget(id)
	err := s.signal(context.Background(), id, unix.SIGKILL, false)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		_, err = s.machine.Agent().Wait(ctx, &protocol.WaitRequest{ContainerId: s.container.ID, ProcessId: id})
	}
	if err != nil {
		s.log.WithError(err).WithField("process", id).Warn("kill an exec'd process whose exec process has ended")
	}
}

func (s *supervisor) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.execs, id)
}

// maxHeld is as many outputs as a process has.
const maxHeld = 2 + protocol.MaxDescriptors

// Wait returns an exec'd process's exit code. Its caller's end is the
// process's: an engine that kills the exec process on the host means the one in
// the guest.
func (s *supervisor) Wait(ctx context.Context, req *control.WaitRequest) (*control.WaitResponse, error) {
	s.mu.Lock()
	e, known := s.execs[req.ProcessId]
	s.mu.Unlock()
	if !known || (e.orphaned != nil && !e.orphaned.Stop()) {
		return nil, errNoProcess
	}
	resp, err := s.machine.Agent().Wait(ctx, &protocol.WaitRequest{ContainerId: s.container.ID, ProcessId: req.ProcessId})
	if err != nil && ctx.Err() != nil {
		s.endExec(req.ProcessId) //nolint:contextcheck // the caller's has ended
		return nil, err
	}
	s.forget(req.ProcessId)
	if err != nil {
		return nil, err
	}
	held := make([]*control.HeldOutput, 0, min(len(resp.Held), maxHeld))
	for _, h := range resp.Held[:min(len(resp.Held), maxHeld)] {
		held = append(held, &control.HeldOutput{Kind: h.Kind, Number: h.Number, Carried: h.Carried})
	}
	return &control.WaitResponse{ExitCode: resp.ExitCode & 0xff, Held: held}, nil
}
