// Package fake makes virtual machines that are functions of the test process. With them, code
// above hypervisor.VM is tested in milliseconds, and with failures that a real VM does not show
// on demand.
package fake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/linux/syscalls"
)

// ErrPoweredOff is what VM.Err returns after the guest function has returned nil.
var ErrPoweredOff = errors.New("guest powered itself off")

// Starter starts VMs inside the test process. The zero value makes VMs whose guest never sends
// anything. Its fields must not change after the first Start.
type Starter struct {
	// Guest plays the guest. conn is the guest's end of the agent channel, and ctx ends when
	// the VM is stopped. When Guest returns the VM ends: powered off if it returned nil, else
	// with that error, which Err returns. If Guest is nil, the guest does nothing until it is
	// stopped.
	Guest func(ctx context.Context, conn net.Conn, cfg hypervisor.Config) error
	// StartErr, if set, is returned by Start instead of a VM.
	StartErr error
	// Info is returned by the VM's Info. HostPID defaults to the test process.
	Info hypervisor.Info
	// InfoErr, if set, is returned by the VM's Info, as if the vmm did not answer.
	InfoErr error
	// ConsoleText is on the console from the beginning.
	ConsoleText string

	mu  sync.Mutex
	vms []*VM
}

var (
	_ hypervisor.Starter = (*Starter)(nil)
	_ hypervisor.VM      = (*VM)(nil)
)

// Start implements hypervisor.Starter. The channel is always a socket pair in Serial: what is
// written before the guest reads is kept, and deadlines work.
func (s *Starter) Start(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start fake vm: %w", err)
	}
	if s.StartErr != nil {
		return nil, s.StartErr
	}
	near, far, err := syscalls.ConnPair("fake-channel")
	if err != nil {
		return nil, fmt.Errorf("start fake vm: %w", err)
	}
	//nolint:gosec // G118: the VM outlives Start's context, as a real one does; Stop cancels it.
	guestCtx, cancel := context.WithCancel(context.Background())
	vm := &VM{
		channel: hypervisor.Channel{Serial: near},
		info:    s.info(cfg),
		infoErr: s.InfoErr,
		console: s.ConsoleText,
		cancel:  cancel,
		fail:    make(chan error, 1),
		done:    make(chan struct{}),
	}
	s.mu.Lock()
	s.vms = append(s.vms, vm)
	s.mu.Unlock()
	go vm.run(guestCtx, s.Guest, far, cfg) //nolint:contextcheck // the guest outlives the call
	return vm, nil
}

// VMs returns all VMs that were started, the oldest first.
func (s *Starter) VMs() []*VM {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*VM(nil), s.vms...)
}

func (s *Starter) info(cfg hypervisor.Config) hypervisor.Info {
	info := s.Info
	if info.HostPID == 0 {
		info.HostPID = os.Getpid()
	}
	if info.Accel == "" {
		info.Accel = cfg.Accel
	}
	return info
}

// VM is a running guest function.
type VM struct {
	channel hypervisor.Channel
	info    hypervisor.Info
	infoErr error
	cancel  context.CancelFunc
	fail    chan error
	done    chan struct{}

	mu      sync.Mutex
	console string
	stopped bool
	err     error
}

// run ends when the guest returns, Fail is called or the VM is stopped. It closes the guest's
// end of the channel before Done, as the kernel does for a vmm that has died.
func (v *VM) run(ctx context.Context, guest func(context.Context, net.Conn, hypervisor.Config) error, far net.Conn, cfg hypervisor.Config) {
	returned := make(chan error, 1)
	if guest != nil {
		go func() { returned <- guest(ctx, far, cfg) }()
	}
	var err error
	select {
	case err = <-returned:
		if err == nil {
			err = ErrPoweredOff
		}
	case err = <-v.fail:
	case <-ctx.Done():
	}
	v.cancel()
	// Closing a socket pair cannot fail in a way that matters.
	far.Close()
	v.mu.Lock()
	if !v.stopped {
		v.err = err
	}
	v.mu.Unlock()
	close(v.done)
}

// Fail ends the VM as if its vmm had died. Err then returns err.
func (v *VM) Fail(err error) {
	select {
	case v.fail <- err:
	default: // it has failed already
	}
	<-v.done
}

// Print appends text to the console, as a guest would.
func (v *VM) Print(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.console += text
}

// Channel implements hypervisor.VM.
func (v *VM) Channel() hypervisor.Channel { return v.channel }

// Needs implements hypervisor.VM.
func (v *VM) Needs() hypervisor.Needs { return hypervisor.Needs{} }

// SealShare implements hypervisor.VM.
func (v *VM) SealShare() error { return nil }

// Info implements hypervisor.VM.
func (v *VM) Info(ctx context.Context) (hypervisor.Info, error) {
	if err := ctx.Err(); err != nil {
		return hypervisor.Info{}, err
	}
	select {
	case <-v.done:
		return hypervisor.Info{}, errors.New("query fake vm: it has ended")
	default:
		return v.info, v.infoErr
	}
}

// Console implements hypervisor.VM.
func (v *VM) Console() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.console
}

// Done implements hypervisor.VM.
func (v *VM) Done() <-chan struct{} { return v.done }

// Err implements hypervisor.VM.
func (v *VM) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// Stop implements hypervisor.VM. It cuts the channel and does not wait for the guest function,
// which may ignore its context.
func (v *VM) Stop() error {
	v.mu.Lock()
	v.stopped = true
	v.mu.Unlock()
	v.cancel()
	<-v.done
	return nil
}
