package supervisor

import (
	"context"
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/hooks"
	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/protocol"
)

// service answers the verbs. It has no state of its own and so no lock: each part that a verb
// changes has its own. Each verb that changes the status does it in the same order: begin and
// stage of the record, the call to the guest, commit.
type service struct {
	id      string // of the container
	agent   protocol.AgentService
	size    *machine.Config // the limits that update cannot exceed
	hooks   *specs.Hooks    // those that run in the guest
	network *machine.Network
	record  *record
	pause   *pause
	execs   *executions
	killing *killing
	ooms    *oomWatch
	// abort ends the copying of the container's remaining output.
	abort func()
	over  <-chan struct{} // closed when the container has ended
}

// Start gives the guest the interfaces that the network namespace has now, and then releases
// the container's process.
func (s *service) Start(ctx context.Context, _ *control.StartRequest) (*control.StartResponse, error) {
	done, err := s.record.begin(state.Start)
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := startTimeout(ctx, s.hooks)
	defer cancel()
	phases := timings.New("supervisor")
	// This is before the process runs, because some engines wire the namespace between create
	// and start.
	if err := s.network.Wire(ctx); err != nil {
		return nil, err
	}
	phases.Lap("network")
	saved, err := s.record.stageStatus(state.Running)
	if err != nil {
		return nil, err
	}
	defer saved.cancel()
	if _, err := s.agent.Start(ctx, &protocol.StartRequest{ContainerId: s.id}); err != nil {
		return nil, err
	}
	phases.Lap("execve")
	s.ooms.follow() //nolint:contextcheck // it outlives the call
	saved.commit()
	phases.Lap("save state")
	s.network.Follow() //nolint:contextcheck // it outlives the call
	return &control.StartResponse{Phases: control.FromPhases(phases.Phases())}, nil
}

// startTimeout adds the timeouts of the hooks that run in the guest. If one has none, the call
// has no limit, and a kill ends it.
func startTimeout(ctx context.Context, h *specs.Hooks) (context.Context, context.CancelFunc) {
	more, bounded := hooks.Timeout(hooks.Of(h).StartContainer)
	if !bounded {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, callTimeout+more)
}

// Resize sets the window size of an exec'd process's terminal.
func (s *service) Resize(ctx context.Context, req *control.ResizeRequest) (*control.ResizeResponse, error) {
	if err := resize(ctx, s.agent, s.id, req.ProcessId, req.Rows, req.Columns); err != nil {
		return nil, err
	}
	return &control.ResizeResponse{}, nil
}

// Pause freezes every process of the container.
func (s *service) Pause(ctx context.Context, _ *control.PauseRequest) (*control.PauseResponse, error) {
	done, err := s.record.begin(state.Pause)
	if err != nil {
		return nil, err
	}
	defer done()
	saved, err := s.record.stageStatus(state.Paused)
	if err != nil {
		return nil, err
	}
	defer saved.cancel()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.agent.Pause(ctx, &protocol.PauseRequest{ContainerId: s.id}); err != nil {
		return nil, err
	}
	s.pause.begin(s.record.status()) // before anybody can see the status paused
	saved.commit()
	return &control.PauseResponse{}, nil
}

// Resume thaws them. The container is created or running again, as before.
func (s *service) Resume(ctx context.Context, _ *control.ResumeRequest) (*control.ResumeResponse, error) {
	done, err := s.record.begin(state.Resume)
	if err != nil {
		return nil, err
	}
	defer done()
	saved, err := s.record.stageStatus(s.pause.status())
	if err != nil {
		return nil, err
	}
	defer saved.cancel()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.agent.Resume(ctx, &protocol.ResumeRequest{ContainerId: s.id}); err != nil {
		return nil, err
	}
	saved.commit()
	s.pause.end()
	return &control.ResumeResponse{}, nil
}

// Update changes the container's limits in the guest, and saves those that the cli has set on
// the host.
func (s *service) Update(ctx context.Context, req *control.UpdateRequest) (*control.UpdateResponse, error) {
	done, err := s.record.begin(state.Update)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := fits(req.Resources, s.size); err != nil {
		return nil, err
	}
	saved, err := s.record.stageLimits(req.Limits)
	if err != nil {
		return nil, err
	}
	defer saved.cancel()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = s.agent.Update(ctx, &protocol.UpdateRequest{ContainerId: s.id, Resources: req.Resources})
	if err != nil {
		return nil, err
	}
	saved.commit()
	return &control.UpdateResponse{}, nil
}

// fits returns an error for a limit that is larger than the VM.
func fits(resources []byte, size *machine.Config) error {
	var r specs.LinuxResources
	if err := json.Unmarshal(resources, &r); err != nil {
		return fmt.Errorf("read resources: %w", err)
	}
	vcpus := size.VCPUs
	if r.CPU != nil && r.CPU.Cpus != "" && specconv.CountCPUs(r.CPU.Cpus) > vcpus {
		return fmt.Errorf("cpu.cpus: %s is more than the virtual machine's %d CPUs, which cannot grow: create the container with more or the annotation %s",
			r.CPU.Cpus, vcpus, specconv.AnnotationVCPUs)
	}
	if r.Memory == nil || r.Memory.Limit == nil {
		return nil
	}
	if ram := int64(size.MemoryMiB) << 20; *r.Memory.Limit > ram {
		return fmt.Errorf("memory.limit: %d bytes is more than the virtual machine's %d MiB, which cannot grow: create the container with a larger limit or the annotation %s",
			*r.Memory.Limit, size.MemoryMiB, specconv.AnnotationMemoryMiB)
	}
	return nil
}

// Ps lists the container's processes on the host: this one and its exec processes.
func (s *service) Ps(context.Context, *control.PsRequest) (*control.PsResponse, error) {
	own := int32(s.record.pid())
	return &control.PsResponse{HostPids: append([]int32{own}, s.execs.hostPIDs()...)}, nil
}

// Exec starts one more process in the container.
func (s *service) Exec(ctx context.Context, req *control.ExecRequest) (*control.ExecResponse, error) {
	if err := s.mayExec(ctx, req.IgnorePaused); err != nil {
		return nil, err
	}
	s.network.Refresh() //nolint:contextcheck // the network is not only this caller's
	id, err := s.execs.start(ctx, req)
	if err != nil {
		return nil, err
	}
	s.ooms.follow() //nolint:contextcheck // it outlives the call
	return &control.ExecResponse{ProcessId: id}, nil
}

// mayExec waits until the container is resumed, if ignorePaused is set: a process that joins a
// frozen cgroup would do nothing before, as with runc. The wait ends with the caller.
func (s *service) mayExec(ctx context.Context, ignorePaused bool) error {
	for {
		err := s.record.allowed(state.Exec)
		if err == nil || !ignorePaused || s.record.status() != state.Paused {
			return err
		}
		select {
		case <-s.pause.over():
		case <-s.over:
			// A container that ends waits for connected callers.
			return &state.Error{Verb: state.Exec, ID: s.id, Status: state.Stopped}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// maxHeld is the number of outputs that a process can have.
const maxHeld = 2 + protocol.MaxDescriptors

// Wait returns an exec'd process's exit code. If the caller ends, the process is killed: see
// executions.await.
func (s *service) Wait(ctx context.Context, req *control.WaitRequest) (*control.WaitResponse, error) {
	resp, err := s.execs.await(ctx, req.ProcessId)
	if err != nil {
		return nil, err
	}
	held := make([]*control.HeldOutput, 0, min(len(resp.Held), maxHeld))
	for _, h := range resp.Held[:min(len(resp.Held), maxHeld)] {
		held = append(held, &control.HeldOutput{Kind: h.Kind, Number: h.Number, Carried: h.Carried})
	}
	return &control.WaitResponse{ExitCode: resp.ExitCode & 0xff, Held: held}, nil
}

// Kill sends a signal to the container's first process, to all of its processes, or to one that
// was exec'd. SIGKILL always works: a guest that does not obey is ended.
func (s *service) Kill(ctx context.Context, req *control.KillRequest) (*control.KillResponse, error) {
	sig := unix.Signal(req.Signal)
	if err := s.record.allowed(state.Kill); err != nil {
		if sig == unix.SIGKILL {
			// The process has ended, but nobody reads its output. A caller that kills it wants
			// it to end.
			s.abort()
			s.killing.end()
		}
		return nil, err
	}
	var err error
	if req.ProcessId == "" || req.ProcessId == protocol.InitProcess {
		err = s.killing.signalInit(ctx, sig, req.All)
	} else {
		err = s.killing.signal(ctx, req.ProcessId, sig, req.All)
	}
	if err != nil {
		return nil, err
	}
	return &control.KillResponse{}, nil
}

// AwaitOOM waits for the next kill. events calls it.
func (s *service) AwaitOOM(ctx context.Context, req *control.AwaitOOMRequest) (*control.AwaitOOMResponse, error) {
	kills, err := s.ooms.await(ctx, req.Seen)
	if err != nil {
		return nil, err
	}
	return &control.AwaitOOMResponse{Kills: kills}, nil
}
