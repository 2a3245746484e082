package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client"
)

// createInGuest makes the container in the guest, its process waiting, and
// connects its stdio.
func (s *supervisor) createInGuest() error {
	ctx, cancel := s.whileWanted()
	defer cancel()
	ctx, stop := s.machine.While(ctx, s.boot.Machine.BootTimeout)
	defer stop()
	found := s.boot.Found
	var err error
	if found.Hostname, found.Domainname, err = ownNames(); err != nil {
		return err
	}
	spec, err := json.Marshal(s.boot.Plan.GuestSpec(found))
	if err != nil {
		return fmt.Errorf("encode guest spec: %w", err)
	}
	var filter *protocol.Seccomp
	if f := s.boot.Plan.Seccomp; f != nil {
		filter = &protocol.Seccomp{Program: f.Program, Flags: f.Flags}
	}
	var disks []*protocol.Disk
	for i, d := range s.boot.Plan.Disks {
		disks = append(disks, &protocol.Disk{Serial: specconv.Serial(i), Major: d.Major, Minor: d.Minor})
	}
	resp, err := s.machine.Agent().Create(ctx, &protocol.CreateRequest{
		ContainerId:  s.container.ID,
		Spec:         spec,
		Seccomp:      filter,
		BareNewlines: s.boot.BareNewlines,
		Bundle:       s.container.Bundle,
		Disks:        disks,
		Descriptors:  s.boot.Descriptors,
		NotifyPath:   s.notify.GuestPath(),
		Share: &protocol.Share{
			Tag: specconv.ShareTag, Type: "9p", Options: s.boot.Plan.ShareOptions, GuestDir: specconv.GuestShareDir,
		},
	})
	var refused *client.AgentError
	if errors.As(err, &refused) {
		return err
	}
	if err != nil {
		return s.machine.WithConsole(s.machine.Explain(ctx, err))
	}
	s.timings.Lap("agent create")
	s.notePhases(resp)
	if err := s.notify.Relay(ctx, s.machine, s.container.ID); err != nil {
		return s.machine.WithConsole(s.machine.Explain(ctx, err))
	}
	passed := stdio.Passed(s.parent, s.boot.Descriptors)
	if s.pty != nil {
		s.relay, err = stdio.Terminal(ctx, s.dial(protocol.InitProcess), s.pty, passed)
	} else {
		s.relay, err = stdio.Pipes(ctx, s.dial(protocol.InitProcess), s.null, passed)
	}
	if err != nil {
		return s.machine.WithConsole(s.machine.Explain(ctx, err))
	}
	stdio.Forward(s.forward, s.followSize())
	s.timings.Lap("stdio")
	return nil
}

// whileWanted is a context for the time before created: it ends with the cli.
func (s *supervisor) whileWanted() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		select {
		case <-s.parent.Gone():
			cancel(errors.New("the cli ended before the container was created"))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// ownNames returns the host name and the domain name of this process's uts namespace, which
// a container without a name gets: the host's or another container's, if config.json asks
// for it, or a new one, which begins with the host's. The guest's kernel has no name.
func ownNames() (host, domain string, err error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", "", os.NewSyscallError("uname", err)
	}
	return unix.ByteSliceToString(uts.Nodename[:]), unix.ByteSliceToString(uts.Domainname[:]), nil
}

// notePhases notes what the agent says its part of create has taken. The guest's
// clock is another, so only lengths are taken: the last ended a moment ago.
func (s *supervisor) notePhases(r *protocol.CreateResponse) {
	end := timings.Now()
	for _, p := range []struct {
		name  string
		nanos int64
	}{{"init stage", r.StageNanos}, {"guest setup: cgroup, fork", r.SetupNanos}, {"guest setup: share", r.ShareNanos}} {
		took := time.Duration(p.nanos)
		if took < 0 || took > s.boot.Machine.BootTimeout {
			continue // a guest may say anything
		}
		end -= took
		s.timings.Add(timings.Phase{Process: "agent", Name: p.name, Began: end, Took: took})
	}
}

func (s *supervisor) dial(processID string) stdio.Dial {
	return func(ctx context.Context, kind protocol.StreamKind, number byte) (stdio.Stream, error) {
		return s.machine.Stream(ctx, protocol.StreamHeader{
			Kind: kind, ContainerID: s.container.ID, ProcessID: processID, Number: number,
		})
	}
}

// waitInit delivers the exit code of the container's process once.
func (s *supervisor) waitInit() <-chan int {
	ch := make(chan int, 1)
	go func() {
		resp, err := s.machine.Agent().Wait(context.Background(), &protocol.WaitRequest{
			ContainerId: s.container.ID, ProcessId: protocol.InitProcess,
		})
		if err != nil {
			// Only a broken channel ends this call. A guest that is still there but
			// does not talk any more is of no use to anybody.
			s.loseVM(fmt.Errorf("wait for the container's process: %w", s.machine.Explain(context.Background(), err)))
			ch <- exitLost
			return
		}
		if resp.OomKilled {
			// Whoever waits for the exit asks the cgroup why, and then it goes.
			s.noteOOM(1)
		}
		ch <- int(resp.ExitCode & 0xff)
	}()
	return ch
}
