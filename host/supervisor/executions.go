package supervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/protocol"
)

var errNoProcess = errors.New("no such process")

// executions are the exec'd processes of the container whose end nobody has waited for yet.
type executions struct {
	id    string // of the container
	agent protocol.AgentService
	log   *logrus.Logger
	// orphanAfter is how long a process may run before somebody waits for it.
	orphanAfter time.Duration

	// mu guards the fields below and those of each execution. It is held only to read or write
	// them, never during a call to the guest.
	mu    sync.Mutex
	count int // of all executions so far
	live  map[string]*execution
}

// execution is one exec'd process.
type execution struct {
	hostPID int32 // pid of its exec process
	// orphaned kills the process if nobody waits for it in time, because its exec process has
	// died before.
	orphaned *time.Timer
}

func newExecutions(containerID string, agent protocol.AgentService, log *logrus.Logger) *executions {
	return &executions{id: containerID, agent: agent, log: log, orphanAfter: callTimeout, live: map[string]*execution{}}
}

// start starts a process and returns its ID for the agent.
func (e *executions) start(ctx context.Context, req *control.ExecRequest) (id string, err error) {
	one := &execution{hostPID: req.HostPid}
	e.mu.Lock()
	e.count++
	id = fmt.Sprintf("exec-%d", e.count)
	e.live[id] = one
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = e.agent.Exec(ctx, &protocol.ExecRequest{
		ContainerId: e.id, ProcessId: id, Process: req.Process, BareNewlines: req.BareNewlines, Descriptors: req.Descriptors,
	})
	if err != nil {
		e.forget(id)
		return "", err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	one.orphaned = time.AfterFunc(e.orphanAfter, func() { e.end(id) }) //nolint:contextcheck // it comes after the call
	return id, nil
}

// await waits for the end of a process and then forgets the process. The process is killed if
// ctx ends, because an engine that kills the exec process on the host means the process in the
// guest.
func (e *executions) await(ctx context.Context, id string) (*protocol.WaitResponse, error) {
	if !e.claim(id) {
		return nil, errNoProcess
	}
	resp, err := e.agent.Wait(ctx, &protocol.WaitRequest{ContainerId: e.id, ProcessId: id})
	if err != nil && ctx.Err() != nil {
		e.end(id) //nolint:contextcheck // the caller's context has ended
		return nil, err
	}
	e.forget(id)
	return resp, err
}

// claim says whether the caller may wait for a process: the process is known and has not been
// given up as an orphan.
func (e *executions) claim(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	one := e.live[id]
	return one != nil && (one.orphaned == nil || one.orphaned.Stop())
}

// end kills an exec'd process that has no owner any more, and waits for it, because the agent
// keeps its record until then.
func (e *executions) end(id string) {
	defer e.forget(id)
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_, err := e.agent.Kill(ctx, &protocol.KillRequest{ContainerId: e.id, ProcessId: id, Signal: uint32(unix.SIGKILL)})
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		_, err = e.agent.Wait(ctx, &protocol.WaitRequest{ContainerId: e.id, ProcessId: id})
	}
	if err != nil {
		e.log.WithError(err).WithField("process", id).Warn("kill an exec'd process whose exec process has ended")
	}
}

func (e *executions) forget(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.live, id)
}

// hostPIDs returns the pids of the exec processes on the host.
func (e *executions) hostPIDs() (pids []int32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, one := range e.live {
		pids = append(pids, one.hostPID)
	}
	return pids
}
