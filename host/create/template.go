package create

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/template"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor/qemu"
)

// useTemplate finds the memory template for the machine, or makes it. If there is none the
// container boots, which is slower but no error, and a warning says why.
func (c *Choice) useTemplate(ctx context.Context, settings *config.Config, scope template.Scope) {
	t, discarded, err := c.FindOrMakeTemplate(ctx, settings, scope)
	if discarded != nil {
		c.Warnings = append(c.Warnings, fmt.Sprintf("memory template %v; it was made again", discarded))
	}
	if err != nil {
		c.Warnings = append(c.Warnings, fmt.Sprintf("no memory template, so the container boots: %v", err))
		return
	}
	logrus.Debugf("memory template %s in %s", t.Key, filepath.Dir(t.RAM))
	c.Machine.Template = &machine.Template{Store: filepath.Dir(filepath.Dir(t.RAM)), Key: t.Key, RAM: t.RAM, Devices: t.Devices}
}

// FindOrMakeTemplate returns the memory template for the machine. discarded says why a template
// that was found could not be used.
func (c *Choice) FindOrMakeTemplate(ctx context.Context, settings *config.Config, scope template.Scope) (t *template.Template, discarded, err error) {
	kind, err := c.Kind(scope)
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
	// The phases of making a template are not those of the container.
	ctx, cancel := context.WithTimeout(timings.With(ctx, nil), c.Machine.BootTimeout)
	defer cancel()
	if logrus.IsLevelEnabled(logrus.DebugLevel) {
		ctx = log.WithLogger(ctx, logrus.NewEntry(logrus.StandardLogger()))
	}
	t, err = store.Make(ctx, *kind, template.Boot(qemu.New(), c.Machine.Hypervisor(), c.Machine.NICs))
	return t, discarded, err
}

// Kind returns the kind of memory template from which the machine can start.
func (c *Choice) Kind(scope template.Scope) (*template.Kind, error) {
	m := &c.Machine
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
		Husk: husk, Guest: c.Image.Digest, VMM: vmm, Accel: string(m.Accel), CPU: cpu,
		Machine: qemu.Fingerprint(m.Hypervisor(), m.NICs), Host: unix.ByteSliceToString(uts.Release[:]),
		MemoryMiB: m.MemoryMiB, VCPUs: m.VCPUs, NICs: m.NICs, Cmdline: m.KernelParams,
		Tenant: scope.Tenant, Part: scope.Part,
	}, nil
}
