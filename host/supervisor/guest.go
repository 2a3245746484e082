package supervisor

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client"
)

const shareTag = specconv.ShareTag

// entropyBytes go into the guest's random number generator before any process
// of the container runs.
const entropyBytes = 64

// meetAgent waits for the guest to come up and exchanges greetings with it.
func (s *supervisor) meetAgent(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := s.whileWanted(ctx, timeout)
	defer cancel()
	defer s.timings.Lap("agent hello")
	a, err := client.Connect(ctx, s.transport(), s.boot.Build)
	if err != nil {
		return s.explain(ctx, err)
	}
	s.agent = a
	entropy := make([]byte, entropyBytes)
	if _, err := rand.Read(entropy); err != nil {
		return fmt.Errorf("read entropy: %w", err)
	}
	hello, err := a.Control().Hello(ctx, &protocol.HelloRequest{UnixNanos: time.Now().UnixNano(), Entropy: entropy})
	if err != nil {
		return fmt.Errorf("greet the agent: %w", s.explain(ctx, err))
	}
	s.log.WithField("kernel", fmt.Sprintf("%q", hello.KernelRelease)).WithField("hypervisor", fmt.Sprintf("%q", hello.Hypervisor)).Debug("agent is up")
	return nil
}

func (s *supervisor) transport() client.Transport {
	ch := s.vm.Channel()
	if ch.VsockCID == 0 {
		return client.Serial(ch.Serial)
	}
	return client.Vsock(ch.Serial, ch.VsockCID)
}

// whileWanted is a context for the time before created: it ends with the VM,
// with the cli, or after limit, and its cause says which.
func (s *supervisor) whileWanted(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("the guest did not answer within %s (setting boot_timeout)", limit))
	})
	vm := s.vm // another may take its place
	go func() {
		select {
		case <-vm.Done():
			cancel(fmt.Errorf("virtual machine ended: %w", orUnknown(vm.Err())))
		case <-s.parent.Gone():
			cancel(errors.New("the cli ended before the container was created"))
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// endGrace is how long the end of the VM may take to show after its channel broke.
const endGrace = 2 * time.Second

// explain finds the cause of a call to the agent that failed: that the VM has
// ended, or that nobody wants the container any more, is what there is to say,
// not that the channel broke.
func (s *supervisor) explain(ctx context.Context, err error) error {
	if errors.Is(err, protocol.ErrMismatch) {
		return err // and the agent, hearing of it, may end the VM
	}
	select {
	case <-s.vm.Done():
		return fmt.Errorf("virtual machine ended: %w", orUnknown(s.vm.Err()))
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(endGrace):
		return err
	}
}

// createInGuest makes the container in the guest, its process waiting, and
// connects its stdio.
func (s *supervisor) createInGuest() error {
	ctx, cancel := s.whileWanted(context.Background(), s.boot.Machine.BootTimeout)
	defer cancel()
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
	resp, err := s.agent.Control().Create(ctx, &protocol.CreateRequest{
		ContainerId:  s.container.ID,
		Spec:         spec,
		Seccomp:      filter,
		BareNewlines: s.boot.BareNewlines,
		Bundle:       s.container.Bundle,
		Disks:        disks,
		Descriptors:  s.boot.Descriptors,
		NotifyPath:   s.notify.guestPath,
		Share: &protocol.Share{
			Tag: shareTag, Type: "9p", Options: s.boot.Plan.ShareOptions, GuestDir: specconv.GuestShareDir,
		},
	})
	var refused *client.AgentError
	if errors.As(err, &refused) {
		return err
	}
	if err != nil {
		return s.withConsole(s.explain(ctx, err))
	}
	s.timings.Lap("agent create")
	s.notePhases(resp)
	if err := s.relayNotify(ctx); err != nil {
		return s.withConsole(s.explain(ctx, err))
	}
	passed := stdio.Passed(s.parent, s.boot.Descriptors)
	if s.pty != nil {
		s.relay, err = stdio.Terminal(ctx, s.dial(protocol.InitProcess), s.pty, passed)
	} else {
		s.relay, err = stdio.Pipes(ctx, s.dial(protocol.InitProcess), s.null, passed)
	}
	if err != nil {
		return s.withConsole(s.explain(ctx, err))
	}
	stdio.Forward(s.forward, s.followSize())
	s.timings.Lap("stdio")
	return nil
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
		return s.agent.Stream(ctx, protocol.StreamHeader{
			Kind: kind, ContainerID: s.container.ID, ProcessID: processID, Number: number,
		})
	}
}

// waitInit delivers the exit code of the container's process once.
func (s *supervisor) waitInit() <-chan int {
	ch := make(chan int, 1)
	go func() {
		resp, err := s.agent.Control().Wait(context.Background(), &protocol.WaitRequest{
			ContainerId: s.container.ID, ProcessId: protocol.InitProcess,
		})
		if err != nil {
			// Only a broken channel ends this call. A guest that is still there but
			// does not talk any more is of no use to anybody.
			s.loseVM(fmt.Errorf("wait for the container's process: %w", s.explain(context.Background(), err)))
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

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}
