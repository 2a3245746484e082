package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/config"
	"github.com/huskvm/husk/hypervisor/qemu"
	"github.com/huskvm/husk/supervisor"
	"github.com/huskvm/husk/template"
)

// useTemplate finds the memory template for a machine and makes it when there is
// none. Without one the container boots: that is slower and no failure.
func useTemplate(ctx context.Context, settings *config.Config, m *supervisor.Machine, guestDigest string) *supervisor.Template {
	kind, err := kindOf(m, guestDigest)
	if err != nil {
		logrus.Debugf("no memory template: %v", err)
		return nil
	}
	store := template.Store{Dir: filepath.Join(settings.Cache, "templates")}
	t, err := store.Find(*kind)
	if errors.Is(err, template.ErrNone) {
		logrus.Debugf("making a memory template: %v", err)
		ctx, cancel := context.WithTimeout(ctx, m.BootTimeout)
		defer cancel()
		t, err = store.Make(ctx, *kind, template.Boot(qemu.New(), m.Config(), m.NICs))
	}
	if err != nil {
		logrus.Debugf("no memory template: %v", err)
		return nil
	}
	return &supervisor.Template{Store: store.Dir, Key: t.Key, RAM: t.RAM, Devices: t.Devices}
}

func kindOf(m *supervisor.Machine, guestDigest string) (*template.Kind, error) {
	cpu, err := template.HostCPU()
	if err != nil {
		return nil, err
	}
	vmm, err := template.FileIdentity(m.QEMU)
	if err != nil {
		return nil, err
	}
	return &template.Kind{
		Build: build, Guest: guestDigest, VMM: vmm, Accel: string(m.Accel), CPU: cpu,
		MemoryMiB: m.MemoryMiB, VCPUs: m.VCPUs, NICs: m.NICs, Cmdline: m.KernelParams,
	}, nil
}
