package template

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/protocol"
)

// Boot returns the function that Store.Make needs. It boots a guest of cfg with nics network
// cards, waits until its agent has opened the channel, and saves it. Nobody ever speaks to that
// agent, so a clone knows of no container when it wakes up.
//
// Boot sets the taps, the share directory and the template files of cfg.
func Boot(starter hypervisor.Starter, cfg hypervisor.Config, nics int) func(ctx context.Context, ram, devices string) error {
	return func(ctx context.Context, ram, devices string) (err error) {
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
		return hypervisor.Boot(func() error {
			if err := emptyFile(ram); err != nil {
				return err
			}
			return save(ctx, starter, cfg)
		})
	}
}

// emptyFile makes the file for the RAM of a guest that is about to boot. QEMU would make the
// file readable for everybody, and a guest must not boot in the RAM of another one.
func emptyFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
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
	// Neither of the two waits below ends by itself when the guest panics.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-vm.Done():
			cancel(fmt.Errorf("virtual machine ended: %w", vm.Err()))
		case <-ctx.Done():
		}
	}()
	// Nothing is ever written to the channel, because it would be in the memory of each clone.
	err = saver.AwaitChannel(ctx)
	if err == nil {
		err = saver.Save(ctx)
	}
	stopErr := vm.Stop()
	if err != nil && errors.Is(vm.Err(), hypervisor.ErrNoTimer) {
		// The wait may have seen the end of the VM first by what it was waiting for.
		return hypervisor.ErrNoTimer
	}
	return errors.Join(err, stopErr)
}

// tapsToNowhere makes taps in a new network namespace, which ends with them. They are needed
// because the saved state of a card depends on the kind of its backend.
func tapsToNowhere(n int) (taps []*network.Tap, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The goroutine is not unlocked, so the thread ends with it.
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
