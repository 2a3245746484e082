package main

import (
	"errors"
	"fmt"
	"log"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/agent/names"
	"github.com/huskvm/husk/agent/netconf"
	"github.com/huskvm/husk/libcontainer"
	"github.com/huskvm/husk/protocol"
)

// maxProcesses bounds the processes of one container that the agent keeps: those that run and
// those that nobody has waited for.
const maxProcesses = 1024

// container is one container and those of its processes that the host has started.
type container struct {
	id string
	c  *libcontainer.Container
	// notify is nil if the container has no notification socket.
	notify *notify

	network sync.Mutex
	cards   netconf.Cards  // guarded by network
	policy  netconf.Policy // guarded by network

	mu        sync.Mutex
	processes map[string]*process
}

// process is a process that the host has started. It is kept until somebody has waited for it.
type process struct {
	p     *libcontainer.Process
	stdio *stdio
	// passed are the passed descriptors, from number protocol.FirstDescriptor on.
	passed []*descriptor

	// ended is closed after status and err have been set.
	ended  chan struct{}
	status libcontainer.ExitStatus
	err    error
}

// watch waits for the process in the background. Until then children keeps the reaper from
// reaping it. late: output that other processes write after this one has ended is passed on. A
// terminal has none, because it hangs up with its process.
func watch(p *libcontainer.Process, passed []*descriptor, children *reaper, late bool) (*process, error) {
	std, err := newStdio(p.Stdin, p.Stdout, p.Stderr, p.Console, passed)
	if err != nil {
		return nil, err
	}
	std.late = late && p.Console == nil
	w := &process{p: p, stdio: std, passed: passed, ended: make(chan struct{})}
	pid := p.PID()
	go func() {
		w.status, w.err = p.Wait()
		children.release(pid)
		std.end()
		close(w.ended)
	}()
	return w, nil
}

// reserve reserves an id for a new process. It returns an error if the id is in use or too many
// processes are kept.
func (c *container) reserve(processID string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.processes[processID]; ok {
		return status.Errorf(codes.AlreadyExists, "process %q exists already", processID)
	}
	if len(c.processes) >= maxProcesses {
		return status.Errorf(codes.ResourceExhausted, "container has %d processes that were not waited for", maxProcesses)
	}
	c.processes[processID] = nil
	return nil
}

func (c *container) set(processID string, p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p == nil {
		delete(c.processes, processID)
		return
	}
	c.processes[processID] = p
}

// relayNames makes the stream the one for the container's DNS questions. It owns s unless it
// returns an error.
func (c *container) relayNames(s stream) error {
	r, err := names.Listen(c.c.NetNS(), c.c.CgroupDir())
	if err != nil {
		return err
	}
	if err := protocol.WriteStreamAck(s, nil); err != nil {
		return errors.Join(err, r.Close())
	}
	go func() {
		if err := r.Serve(s); err != nil {
			log.Print(err)
		}
		_ = s.Close()
	}()
	return nil
}

func (c *container) process(processID string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.processes[processID]
	if p == nil {
		return nil, status.Errorf(codes.NotFound, "process %q does not exist", processID)
	}
	return p, nil
}

// reserve reserves an id for a container that is being made. Until set is called the container
// cannot be found. It returns an error if the id is in use.
func (a *agent) reserve(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.containers[id]; ok {
		return status.Errorf(codes.AlreadyExists, "container %q exists already", id)
	}
	a.containers[id] = nil
	return nil
}

// set stores the container for a reserved id; with nil it releases the id.
func (a *agent) set(id string, c *container) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c == nil {
		delete(a.containers, id)
		return
	}
	a.containers[id] = c
}

func (a *agent) container(id string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[id]
	if c == nil {
		return nil, status.Errorf(codes.NotFound, "container %q does not exist", id)
	}
	return c, nil
}

func (a *agent) process(containerID, processID string) (*process, error) {
	c, err := a.container(containerID)
	if err != nil {
		return nil, err
	}
	return c.process(processID)
}

// signal sends a signal to one process. If the process has ended the error has code NotFound,
// because the host cannot know that when it asks.
func (p *process) signal(sig unix.Signal) error {
	err := p.p.Signal(sig)
	if errors.Is(err, libcontainer.ErrNotRunning) {
		return status.Error(codes.NotFound, err.Error())
	}
	if err != nil {
		return fmt.Errorf("signal process: %w", err)
	}
	return nil
}
