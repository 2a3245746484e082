package supervisor

import (
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

// createInGuest makes the container in the guest, whose process then waits, and connects its
// stdio.
func (c *creation) createInGuest() error {
	s := c.s
	ctx, cancel := c.whileWanted()
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
		ContainerId:  s.id,
		Spec:         spec,
		Seccomp:      filter,
		BareNewlines: s.boot.BareNewlines,
		Bundle:       s.boot.Container.Bundle,
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
	c.timings.Lap("agent create")
	c.notePhases(resp)
	if err := s.notify.Relay(ctx, s.machine, s.id); err != nil {
		return s.machine.WithConsole(s.machine.Explain(ctx, err))
	}
	passed := stdio.Passed(c.parent, s.boot.Descriptors)
	if c.pty != nil {
		s.relay, err = stdio.Terminal(ctx, dialer(s.machine, s.id, protocol.InitProcess), c.pty, passed)
	} else {
		s.relay, err = stdio.Pipes(ctx, dialer(s.machine, s.id, protocol.InitProcess), c.null, passed)
	}
	if err != nil {
		return s.machine.WithConsole(s.machine.Explain(ctx, err))
	}
	stdio.Forward(s.killing.forward, followSize(c.pty, s.machine.Agent(), s.id, s.log))
	c.timings.Lap("stdio")
	return nil
}

// ownNames returns the host name and the domain name of this process's uts namespace, which a
// container without a name gets: the host's or another container's if config.json asks for one
// of these, or those of a new namespace, which are copies of the host's. The guest's kernel has
// no name.
func ownNames() (host, domain string, err error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", "", os.NewSyscallError("uname", err)
	}
	return unix.ByteSliceToString(uts.Nodename[:]), unix.ByteSliceToString(uts.Domainname[:]), nil
}

// notePhases records how long the agent says that its phases of create have taken. The guest's
// clock differs from the host's, so only durations are used; the last phase has just ended.
func (c *creation) notePhases(r *protocol.CreateResponse) {
	end := timings.Now()
	for _, p := range []struct {
		name  string
		nanos int64
	}{{"init stage", r.StageNanos}, {"guest setup: cgroup, fork", r.SetupNanos}, {"guest setup: share", r.ShareNanos}} {
		took := time.Duration(p.nanos)
		if took < 0 || took > c.s.boot.Machine.BootTimeout {
			continue // a guest may send anything
		}
		end -= took
		c.timings.Add(timings.Phase{Process: "agent", Name: p.name, Began: end, Took: took})
	}
}
