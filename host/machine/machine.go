// Package machine is one virtual machine with everything connected to it: the vmm, the
// connection to the agent, the network between a namespace of the host and the guest's cards,
// the relay to an engine's resolver, and the relay of notifications. Of a container it knows
// the id, which the agent's messages need, and nothing of its stdio, pid or exit code; those
// are the supervisor's. Everything that passes between the two could also go over a socket:
// plain data, calls of the agent's service, and byte streams.
//
// The order of calls is important:
//
//  1. OpenNetwork and OpenNotify, while paths can be trusted, and OpenNetwork before hooks
//     of the host run, which may change the settings of the network namespace.
//  2. Network.OpenTaps before Start: cards cannot be plugged into a running machine.
//  3. Start. It tries a template first. It returns a machine only if its agent has answered,
//     so whoever has a Machine can call the agent.
//  4. Network.Settle before the caller leaves the host's tree or gives up privileges: until
//     then it is not known which settings a new namespace has.
//  5. SealShare, if hooks have mounted something, before the agent's Create.
//  6. The agent's Create, then Notify.Relay and the streams of the container, which must
//     exist before its process runs.
//  7. Network.Wire just before the container's process runs, because some engines wire the
//     namespace between create and start. Network.Follow after it.
//  8. Network.Leave when the container has ended, so that the network of a container that is
//     going is not reported as a problem.
//  9. Close.
package machine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/template"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client"
)

// callTimeout bounds a call to the agent that does not wait for anything. Under emulation on a
// busy host the guest is slow, but not this slow.
const callTimeout = 30 * time.Second

// entropyBytes is how many random bytes the guest's generator gets before any process of a
// container runs.
const entropyBytes = 64

// Machine is a virtual machine whose agent has answered. Its fields do not change after Start,
// so it has no lock; the VM and the connection to the agent have their own.
type Machine struct {
	config   *Config
	log      *logrus.Logger
	vm       hypervisor.VM
	agent    *client.Client
	warnings []string
}

// Options say how to start a machine. Files stay the caller's.
type Options struct {
	Starter hypervisor.Starter
	Config  *Config
	// Build is the build that husk and its agent must have.
	Build string
	// ShareDir is the directory that the guest gets.
	ShareDir string
	Disks    []hypervisor.Disk
	// FileCapabilities are those of hypervisor.Config.
	FileCapabilities []string
	User             *hypervisor.User // the vmm's user on the host; nil: root
	// Network has the taps of the machine's cards.
	Network *Network
	Log     *logrus.Logger
}

// Start starts a virtual machine, from the template if there is one that works, and returns
// when its agent has answered. ctx is for the start only: it ends when nobody needs the machine
// any more, and its cause says why. Laps are recorded in its timings. After an error nothing is
// left.
func Start(ctx context.Context, o Options) (*Machine, error) {
	m := &Machine{config: o.Config, log: o.Log}
	cfg := o.Config.Hypervisor()
	cfg.ShareDir, cfg.Disks, cfg.FileCapabilities, cfg.User = o.ShareDir, o.Disks, o.FileCapabilities, o.User
	for _, t := range o.Network.taps {
		cfg.NICs = append(cfg.NICs, hypervisor.NIC{MAC: t.MAC, Tap: t.File})
	}
	if !m.wakeUp(ctx, &o, cfg) {
		boot := func() error {
			err := m.attempt(ctx, &o, cfg, o.Config.BootTimeout)
			if errors.Is(err, hypervisor.ErrNoTimer) {
				m.log.WithError(err).Info("the guest has to boot again")
			}
			return err
		}
		if err := hypervisor.Boot(boot); err != nil {
			return nil, err
		}
	}
	o.Network.guest = m
	return m, nil
}

// wakeTimeout returns how long a clone may take to answer, if a boot may take boot. It is a
// hundred times what a clone needs, and short enough that a boot can follow. If a template were
// discarded because the host is busy, making it again would keep the host busier.
func wakeTimeout(boot time.Duration) time.Duration {
	return max(15*time.Second, boot/4)
}

// wakeUp starts the VM from its template, and says whether its agent answers. It returns false
// if there is no template or it does not work; then it also discards the template, and the VM
// has to boot.
func (m *Machine) wakeUp(ctx context.Context, o *Options, cfg hypervisor.Config) bool {
	t := m.config.Template
	if t == nil {
		return false
	}
	if len(cfg.NICs) != m.config.NICs {
		m.log.Info("more interfaces than the template has network cards: booting")
		return false
	}
	cfg.RAMFile, cfg.DeviceState = t.RAM, t.Devices
	err := m.attempt(ctx, o, cfg, wakeTimeout(m.config.BootTimeout))
	if err == nil {
		return true
	}
	if errors.Is(err, hypervisor.ErrTemplateUnsafe) {
		m.warnings = append(m.warnings, fmt.Sprintf("memory templates cannot be used here, so the container boots: %v: set templates to off", err))
		return false
	}
	if ctx.Err() != nil {
		return false // nobody waits any more, which is not the template's fault
	}
	m.warnings = append(m.warnings, fmt.Sprintf("the memory template does not work and is discarded, so the container boots: %v", err))
	m.log.WithError(err).Warn("the memory template does not work and is discarded: booting")
	if err := (template.Store{Dir: t.Store}).Discard(t.Key); err != nil {
		m.log.WithError(err).Warn("discard memory template")
	}
	return false
}

// attempt starts one VM and waits for its agent. After an error the VM has ended, so that
// another one can be started.
func (m *Machine) attempt(ctx context.Context, o *Options, cfg hypervisor.Config, limit time.Duration) (err error) {
	starting, cancel := context.WithTimeout(ctx, limit)
	m.vm, err = o.Starter.Start(starting, cfg)
	cancel()
	boots := cfg.RAMFile == ""
	if err != nil && boots {
		return fmt.Errorf("start virtual machine: %w", err)
	}
	if err != nil {
		return err
	}
	if err = m.meetAgent(ctx, limit, o.Build); err == nil {
		return nil
	}
	if boots {
		err = m.WithConsole(err)
	}
	if m.agent != nil {
		err = errors.Join(err, m.agent.Close())
		m.agent = nil
	}
	if c := m.vm.Channel().Serial; c != nil {
		// It is closed already if the agent has answered.
		_ = c.Close()
	}
	return errors.Join(err, m.vm.Stop())
}

// meetAgent waits for the guest and exchanges greetings with its agent.
func (m *Machine) meetAgent(ctx context.Context, limit time.Duration, build string) error {
	ctx, cancel := m.While(ctx, limit)
	defer cancel()
	defer timings.Lap(ctx, "agent hello")
	a, err := client.Connect(ctx, m.transport(), build)
	if err != nil {
		return m.Explain(ctx, err)
	}
	m.agent = a
	entropy := make([]byte, entropyBytes)
	if _, err := rand.Read(entropy); err != nil {
		return fmt.Errorf("read entropy: %w", err)
	}
	hello, err := a.Control().Hello(ctx, &protocol.HelloRequest{UnixNanos: time.Now().UnixNano(), Entropy: entropy})
	if err != nil {
		return fmt.Errorf("greet the agent: %w", m.Explain(ctx, err))
	}
	m.log.WithField("kernel", fmt.Sprintf("%q", hello.KernelRelease)).WithField("hypervisor", fmt.Sprintf("%q", hello.Hypervisor)).Debug("agent is up")
	return nil
}

func (m *Machine) transport() client.Transport {
	ch := m.vm.Channel()
	if ch.VsockCID == 0 {
		return client.Serial(ch.Serial)
	}
	return client.Vsock(ch.Serial, ch.VsockCID)
}

// Agent returns the agent's service.
func (m *Machine) Agent() protocol.AgentService { return m.agent.Control() }

// Stream opens a byte stream to the guest: see client.Client.Stream.
func (m *Machine) Stream(ctx context.Context, header protocol.StreamHeader) (client.Stream, error) {
	return m.agent.Stream(ctx, header)
}

// Warnings returns warnings for the user, one sentence each.
func (m *Machine) Warnings() []string { return m.warnings }

// Needs returns the rights that the process must not give up because of the machine.
func (m *Machine) Needs() hypervisor.Needs { return m.vm.Needs() }

// VMMPID asks the vmm for its pid in this process's pid namespace. An error means that the vmm
// does not answer.
func (m *Machine) VMMPID(ctx context.Context) (int, error) {
	info, err := m.vm.Info(ctx)
	return info.HostPID, err
}

// SealShare calls hypervisor.VM.SealShare. Call it when hooks of the host have mounted
// something below the rootfs, and before the guest has anything of the container.
func (m *Machine) SealShare() error { return m.vm.SealShare() }

// Done returns a channel that is closed when the virtual machine has ended. Err then says why.
func (m *Machine) Done() <-chan struct{} { return m.vm.Done() }

// Err returns why the virtual machine has ended. Call it after Done is closed.
func (m *Machine) Err() error { return endOf(m.vm) }

func endOf(vm hypervisor.VM) error {
	return fmt.Errorf("virtual machine ended: %w", orUnknown(vm.Err()))
}

// Stop ends the virtual machine at once, without asking the guest. It may be called again.
func (m *Machine) Stop() error { return m.vm.Stop() }

// Close ends the connection to the agent, and then the virtual machine.
func (m *Machine) Close() error {
	// The connection ends first. Otherwise the machine's end would look like a broken channel.
	m.agent.Close()
	return m.vm.Stop()
}

// While returns a context for calls to the guest before its container runs. It ends with the
// virtual machine or after limit, and its cause says which.
func (m *Machine) While(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("the guest did not answer within %s (setting boot_timeout)", limit))
	})
	vm := m.vm // until Start has returned another VM may replace this one
	go func() {
		select {
		case <-vm.Done():
			cancel(endOf(vm))
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// endGrace bounds how long after its channel broke the end of a VM may become visible.
const endGrace = 2 * time.Second

// Explain returns the cause of a failed call to the agent. If the VM has ended, or nobody needs
// the container any more, that is the cause, and not the broken channel.
func (m *Machine) Explain(ctx context.Context, err error) error {
	if errors.Is(err, protocol.ErrMismatch) {
		return err // the agent, when it learns of it, may end the VM
	}
	select {
	case <-m.vm.Done():
		return m.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(endGrace):
		return err
	}
}

// consoleLines is the number of lines of the guest's console in an error.
const consoleLines = 12

// LastWords returns the last lines of the guest's console, without control characters. The
// guest has written them.
func (m *Machine) LastWords() string { return lastLines(m.vm.Console(), consoleLines) }

// WithConsole adds the last lines of the guest's console to an error that the guest has caused.
func (m *Machine) WithConsole(err error) error {
	tail := m.LastWords()
	if tail == "" {
		return err
	}
	return fmt.Errorf("%w; the guest's console ended with:\n%s", err, tail)
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

func orUnknown(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}
