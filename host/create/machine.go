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

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/bootimage"
	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/supervisor"
	"github.com/huskvm/husk/host/template"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/qemu"
)

// Defaults of the settings file (config.Config documents them).
const (
	maxDefaultVCPUs = 4
	defaultNICs     = 4 // three for networks that the container is connected to later
	bootTimeoutKVM  = 20 * time.Second
	bootTimeoutTCG  = 120 * time.Second
)

// newMachine decides everything about the VM: what the plan asks for, else what
// the settings file says, else the default. annotations are config.json's.
func newMachine(ctx context.Context, settings *config.Config, plan *specconv.Plan, annotations map[string]string) (*supervisor.Machine, error) {
	m, image, err := MachineOf(ctx, settings, plan)
	if err != nil {
		return nil, err
	}
	// A template's devices are those of every container, so one with disks boots.
	scope := template.ScopeOf(settings.TemplateScope, plan.VM.TemplateScope, annotations)
	if settings.Templates != "off" && !scope.Alone && !m.FreePages && len(plan.Disks) == 0 {
		m.Template = useTemplate(ctx, settings, m, image.Digest, scope, plan)
	}
	return m, nil
}

// mayEmulate refuses an annotation that takes the wall of the processor away: QEMU's
// emulation is not meant to hold a hostile guest. Where guests are emulated anyway it
// changes nothing.
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

// MachineOf is the VM of a plan without a template, and the boot image. It adds to the
// plan's warnings.
func MachineOf(ctx context.Context, settings *config.Config, plan *specconv.Plan) (*supervisor.Machine, *bootimage.Image, error) {
	if err := mayEmulate(settings, plan, qemu.ProbeAccel); err != nil {
		return nil, nil, err
	}
	accel, _, err := qemu.ProbeAccel(hypervisor.Accel(cmp.Or(plan.VM.Accel, settings.Accel)))
	if err != nil {
		return nil, nil, err
	}
	binary, err := qemu.FindBinary(settings.QEMU)
	if err != nil {
		return nil, nil, err
	}
	image, err := bootimage.Prepare(ctx, bootImage(settings), os.Stderr)
	if err != nil {
		return nil, nil, err
	}
	timeout := bootTimeoutKVM
	if accel == hypervisor.TCG {
		timeout = bootTimeoutTCG
	}
	vcpus := plan.FitVCPUs(cmp.Or(settings.VCPUs, defaultVCPUs(accel)))
	if host := runtime.NumCPU(); vcpus > host {
		// More wait for each other: an emulated guest with 64 on two CPUs boots for minutes.
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("the host has %d CPUs: the guest gets as many, and not %d", host, vcpus))
		vcpus = host
	}
	m := &supervisor.Machine{
		QEMU: binary, Accel: accel,
		MemoryMiB:    cmp.Or(plan.VM.MemoryMiB, settings.MemoryMiB, specconv.DefaultMemoryMiB(hostMemoryMiB())),
		VCPUs:        vcpus,
		NICs:         cmp.Or(plan.VM.NICs, settings.NICs, defaultNICs),
		Kernel:       image.Kernel,
		Initrd:       image.Initrd,
		KernelParams: strings.TrimSpace(sysctlParams("/proc/sys") + " " + settings.KernelParams),
		Vsock:        useVsock(settings.Vsock),
		FreePages:    cmp.Or(plan.VM.FreePages, strconv.FormatBool(settings.FreePageReporting)) == "true",
		BootTimeout:  cmp.Or(time.Duration(settings.BootTimeout), timeout),
	}
	return m, image, nil
}

// defaultVCPUs is one under emulation: of several, those that wait in the guest's
// kernel for one that the host is not running spin meanwhile, and twenty
// containers that start at the same time take half as long again with two.
func defaultVCPUs(accel hypervisor.Accel) int {
	if accel == hypervisor.TCG {
		return 1
	}
	return min(runtime.NumCPU(), maxDefaultVCPUs)
}

func bootImage(s *config.Config) bootimage.Settings {
	return bootimage.Settings{Kernel: s.Kernel, Modules: s.Modules, CacheDir: s.Cache}
}

// useVsock decides the agent channel. "on" without the device is left to the
// hypervisor, whose error says what is missing.
func useVsock(setting string) bool {
	if setting == "on" || setting == "off" {
		return setting == "on"
	}
	ok, _ := qemu.ProbeVsock()
	return ok
}

// hostMemoryMiB is the host's RAM; 0 when the kernel does not say.
func hostMemoryMiB() int {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int(info.Totalram * uint64(info.Unit) >> 20)
}
