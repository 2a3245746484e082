package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/protocol"
)

// Boot returns the function that Store.Make wants: it boots a guest of cfg with
// nics network cards, waits until its agent has opened the channel, and saves it.
// The agent waits there for a host to speak, and nobody ever has: what a clone
// wakes up with knows of no container.
//
// cfg's taps, share directory and template files are set here.
func Boot(starter hypervisor.Starter, cfg hypervisor.Config, nics int) func(ctx context.Context, ram, devices string) error {
	return func(ctx context.Context, ram, devices string) (err error) {
		// QEMU would make it readable for all.
		f, err := os.OpenFile(ram, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return err
		}
		share, err := os.MkdirTemp("", "husk-template-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(share)) }()
		taps, err := tapsToNowhere(nics)
		if err != nil {
			return err
		}
		defer network.CloseTaps(taps)
		cfg.NICs = nil
		for _, t := range taps {
			cfg.NICs = append(cfg.NICs, hypervisor.NIC{MAC: t.MAC, Tap: t.File})
		}
		cfg.ShareDir = share
		cfg.Cmdline += " " + protocol.PrepareParam
		cfg.RAMFile, cfg.DeviceState, cfg.RAMShared = ram, devices, true
		return save(ctx, starter, cfg)
	}
}

func save(ctx context.Context, starter hypervisor.Starter, cfg hypervisor.Config) error {
	vm, err := starter.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer vm.Channel().Serial.Close()
	saver, ok := vm.(hypervisor.Saver)
	if !ok {
		return errors.Join(errors.New("this hypervisor cannot save a VM"), vm.Stop())
	}
	// Neither wait ends by itself when the guest dies of a panic.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-vm.Done():
			cancel(fmt.Errorf("virtual machine ended: %w", vm.Err()))
		case <-ctx.Done():
		}
	}()
	// Nothing is ever written to the channel: what is said to an agent would be in
	// each clone's memory.
	err = saver.AwaitChannel(ctx)
	if err == nil {
		err = saver.Save(ctx)
	}
	return errors.Join(err, vm.Stop())
}

// tapsToNowhere makes taps in a network namespace of their own, which goes with
// them: the device state of a card depends on the kind of its backend.
func tapsToNowhere(n int) (taps []*network.Tap, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Not unlocked: the thread ends with its goroutine.
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			taps, err = network.OpenTaps(n)
		}
	}()
	<-done
	if err != nil {
		return nil, fmt.Errorf("make taps for a template: %w", err)
	}
	return taps, nil
}
