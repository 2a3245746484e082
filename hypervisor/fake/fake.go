// Package fake makes virtual machines that are functions of the test process:
// what sits above hypervisor.VM is tested with them in milliseconds, and made
// to fail where a real VM would not fail on demand.
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

// ErrPoweredOff is what VM.Err reports when the guest function returned nil.
var ErrPoweredOff = errors.New("guest powered itself off")

// Starter starts in-process VMs. The zero value makes VMs whose guest never
// says anything. Its fields must not change once Start was called.
type Starter struct {
	// Guest plays the guest: conn is the far end of the agent channel, ctx ends
	// when the VM is stopped. Its return ends the VM as a power-off (nil) or a
	// failure (Err returns it). Nil means a guest that hangs until stopped.
	Guest func(ctx context.Context, conn net.Conn, cfg hypervisor.Config) error
	// StartErr, if set, is what Start returns instead of a VM.
	StartErr error
	// Info is what the VM's Info returns; HostPID defaults to the test process.
	Info hypervisor.Info
	// InfoErr, if set, is what the VM's Info returns: a vmm that does not answer.
	InfoErr error
	// ConsoleText is on the console from the start.
	ConsoleText string

	mu  sync.Mutex
	vms []*VM
}

var (
	_ hypervisor.Starter = (*Starter)(nil)
	_ hypervisor.VM      = (*VM)(nil)
)

// Start implements hypervisor.Starter. The channel is always Serial, a socket
// pair: what is written before the guest reads waits, and deadlines work.
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

// VMs returns every VM started so far, oldest first.
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
	if info.VMM == "" {
		info.VMM = "fake"
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

// run ends when the guest returns, Fail is called or the VM is stopped. The far
// end is closed before Done, as the kernel closes a dead vmm's.
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
	// A socket pair's close has nothing to report to anyone.
	far.Close()
	v.mu.Lock()
	if !v.stopped {
		v.err = err
	}
	v.mu.Unlock()
	close(v.done)
}

// Fail ends the VM as if its vmm had died; err is what Err then reports.
func (v *VM) Fail(err error) {
	select {
	case v.fail <- err:
	default: // it is already failing
	}
	<-v.done
}

// Print appends to the console, as a guest would.
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

// Stop implements hypervisor.VM. It does not wait for the guest function, which
// may ignore its context: the channel is cut under it instead.
func (v *VM) Stop() error {
	v.mu.Lock()
	v.stopped = true
	v.mu.Unlock()
	v.cancel()
	<-v.done
	return nil
}
