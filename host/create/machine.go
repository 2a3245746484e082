package create

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/bootimage"
	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/template"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/qemu"
)

// Choice is the VM for a plan, and what the container may use of it.
type Choice struct {
	Machine machine.Config
	Image   *bootimage.Image
	// CPUs is the number of vCPUs to which the container is restricted; 0: it may use all.
	CPUs     int
	Warnings []string
}

// choose decides everything about the VM: what the plan asks for, else what the settings file
// says, else the default. annotations are those of config.json.
func choose(ctx context.Context, settings *config.Config, plan *specconv.Plan, annotations map[string]string) (*Choice, error) {
	if err := mayEmulate(settings, plan, qemu.ProbeAccel); err != nil {
		return nil, err
	}
	c, err := Choose(ctx, settings, plan.VM)
	if err != nil {
		return nil, err
	}
	// A template's devices are those that every container has, so a VM with disks boots.
	scope := template.ScopeOf(settings.TemplateScope, plan.VM.TemplateScope, annotations)
	if settings.Templates != "off" && !scope.Alone && len(plan.Disks) == 0 {
		c.useTemplate(ctx, settings, scope)
	} else {
		logrus.Debugf("no memory template: setting templates %q, scope of the container alone %t, free_page_reporting %t, %d block devices",
			settings.Templates, scope.Alone, c.Machine.FreePages, len(plan.Disks))
	}
	return c, nil
}

// mayEmulate refuses an annotation that asks for emulation where KVM is used: QEMU's emulation
// is not meant to isolate a hostile guest. Where guests are emulated anyway the annotation is
// allowed.
func mayEmulate(settings *config.Config, plan *specconv.Plan, probe func(hypervisor.Accel) (hypervisor.Accel, string, error)) error {
	wanted := hypervisor.Accel(settings.Accel)
	if plan.VM.Accel != string(hypervisor.TCG) || wanted == hypervisor.TCG || settings.UnsafeAnnotations {
		return nil
	}
	if wanted != hypervisor.KVM {
		accel, _, err := probe(wanted)
		if err != nil {
			return err
		}
		if accel != hypervisor.KVM {
			return nil
		}
	}
	return weakens([]string{specconv.AnnotationAccel})
}

// Choose returns the VM that a container would boot without a template.
func Choose(ctx context.Context, settings *config.Config, vm specconv.VM) (*Choice, error) {
	accel, why, err := qemu.ProbeAccel(hypervisor.Accel(cmp.Or(vm.Accel, settings.Accel)))
	if err != nil {
		return nil, err
	}
	logrus.Debugf("accel %s: %s", accel, why)
	binary, err := qemu.FindBinary(settings.QEMU)
	if err != nil {
		return nil, err
	}
	image, err := bootimage.Prepare(ctx, bootImage(settings), os.Stderr)
	if err != nil {
		return nil, err
	}
	debugKernel(bootImage(settings), image)
	timeout := config.BootTimeoutKVM
	if accel == hypervisor.TCG {
		timeout = config.BootTimeoutTCG
	}
	vcpus, restricted := vm.Fit(cmp.Or(settings.VCPUs, defaultVCPUs(accel)))
	c := &Choice{Image: image, CPUs: restricted}
	if host := runtime.NumCPU(); vcpus > host {
		// With more vCPUs than CPUs, they wait for each other: an emulated guest with 64 on two
		// CPUs boots for minutes.
		c.Warnings = append(c.Warnings, fmt.Sprintf("the host has %d CPUs: the guest gets as many, and not %d", host, vcpus))
		vcpus = host
	}
	c.Machine = machine.Config{
		QEMU: binary, Accel: accel,
		MemoryMiB:    cmp.Or(vm.MemoryMiB, settings.MemoryMiB, specconv.DefaultMemoryMiB(hostMemoryMiB())),
		VCPUs:        vcpus,
		NICs:         cmp.Or(vm.NICs, settings.NICs, config.DefaultNICs),
		Kernel:       image.Kernel,
		Initrd:       image.Initrd,
		KernelParams: strings.TrimSpace(sysctlParams("/proc/sys") + " " + settings.KernelParams),
		Vsock:        useVsock(settings.Vsock),
		FreePages:    cmp.Or(vm.FreePages, strconv.FormatBool(settings.FreePageReporting)) == "true",
		BootTimeout:  cmp.Or(time.Duration(settings.BootTimeout), timeout),
	}
	logrus.Debugf("virtual machine: %d MiB, %d vcpus, %d network cards, vsock %t, boots within %s",
		c.Machine.MemoryMiB, vcpus, c.Machine.NICs, c.Machine.Vsock, c.Machine.BootTimeout)
	return c, nil
}

// defaultVCPUs returns one under emulation. With several vCPUs, those that wait in the guest's
// kernel for one that the host does not run spin meanwhile. Twenty containers that start at
// once take half as long again with two.
func defaultVCPUs(accel hypervisor.Accel) int {
	if accel == hypervisor.TCG {
		return 1
	}
	return min(runtime.NumCPU(), config.MaxDefaultVCPUs)
}

func bootImage(s *config.Config) bootimage.Settings {
	return bootimage.Settings{Kernel: s.Kernel, Modules: s.Modules, CacheDir: s.Cache}
}

// useVsock decides about the agent channel. For "on" without the device, the hypervisor returns
// an error that says what is missing.
func useVsock(setting string) bool {
	if setting == "on" || setting == "off" {
		return setting == "on"
	}
	ok, _ := qemu.ProbeVsock()
	return ok
}

// hostMemoryMiB returns the host's RAM in MiB; 0 if the kernel does not tell.
func hostMemoryMiB() int {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int(info.Totalram * uint64(info.Unit) >> 20)
}
