package create

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/supervisor"
	"github.com/huskvm/husk/host/template"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor/qemu"
)

// useTemplate finds the memory template for a machine and makes it when there is
// none. Without one the container boots: that is slower and no failure, and the
// plan's warnings say why.
func useTemplate(ctx context.Context, settings *config.Config, m *supervisor.Machine, guestDigest string, scope template.Scope, plan *specconv.Plan) *supervisor.Template {
	t, discarded, err := FindOrMakeTemplate(ctx, settings, m, guestDigest, scope)
	if discarded != nil {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("memory template %v; it was made again", discarded))
	}
	if err != nil {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("no memory template, so the container boots: %v", err))
		return nil
	}
	return &supervisor.Template{Store: filepath.Dir(filepath.Dir(t.RAM)), Key: t.Key, RAM: t.RAM, Devices: t.Devices}
}

// FindOrMakeTemplate returns the memory template for a machine and, where one was found
// that could not be used, why.
func FindOrMakeTemplate(ctx context.Context, settings *config.Config, m *supervisor.Machine, guestDigest string, scope template.Scope) (t *template.Template, discarded, err error) {
	kind, err := KindOf(m, guestDigest, scope)
	if err != nil {
		return nil, nil, err
	}
	store := template.StoreOf(settings)
	t, err = store.Find(*kind)
	if !errors.Is(err, template.ErrNone) {
		return t, nil, err
	}
	var unusable *template.DiscardedError
	if errors.As(err, &unusable) {
		discarded = unusable
	}
	logrus.Debugf("making a memory template: %v", err)
	// Its phases are not the container's.
	ctx, cancel := context.WithTimeout(timings.With(ctx, nil), m.BootTimeout)
	defer cancel()
	t, err = store.Make(ctx, *kind, template.Boot(qemu.New(), m.Config(), m.NICs))
	return t, discarded, err
}

// KindOf is the kind of memory template that a machine starts from.
func KindOf(m *supervisor.Machine, guestDigest string, scope template.Scope) (*template.Kind, error) {
	cpu, err := template.HostCPU()
	if err != nil {
		return nil, err
	}
	vmm, err := template.FileIdentity(m.QEMU)
	if err != nil {
		return nil, err
	}
	husk, err := template.FileIdentity("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	return &template.Kind{
		Husk: husk, Guest: guestDigest, VMM: vmm, Accel: string(m.Accel), CPU: cpu,
		Machine: qemu.Fingerprint(m.Config(), m.NICs), Host: unix.ByteSliceToString(uts.Release[:]),
		MemoryMiB: m.MemoryMiB, VCPUs: m.VCPUs, NICs: m.NICs, Cmdline: m.KernelParams,
		Tenant: scope.Tenant, Part: scope.Part,
	}, nil
}
