package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/huskvm/husk/host/bootimage"
	"github.com/huskvm/husk/host/distro"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/qemu"
)

func accel(want hypervisor.Accel) (hypervisor.Accel, Check) {
	c := Check{Name: "accel", Status: OK}
	got, reason, err := qemu.ProbeAccel(want)
	if err != nil {
		return "", c.fail(err.Error(), "set accel to auto or tcg, or make KVM work")
	}
	c.Detail = fmt.Sprintf("%s: %s", got, reason)
	if got == hypervisor.TCG && want != hypervisor.TCG {
		return got, c.warn(c.Detail, "containers run in software emulation, many times slower: "+
			"enable virtualization in the firmware, or nested virtualization for this machine")
	}
	return got, c
}

// versionTimeout bounds how long QEMU may take to print its version.
const versionTimeout = 10 * time.Second

func qemuBinary(ctx context.Context, configured string) (hostPath string, _ Check) {
	c := Check{Name: "qemu", Status: OK}
	hostPath, err := qemu.FindBinary(configured)
	if err != nil {
		if configured != "" {
			return "", c.fail(err.Error(), "correct qemu in the settings file, or remove it there")
		}
		return "", c.fail(err.Error(), distro.Install(distro.QEMU))
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, hostPath, "--version").CombinedOutput()
	if err != nil {
		return hostPath, c.fail(fmt.Sprintf("%s --version: %v: %s", hostPath, err, firstLine(out)), distro.Install(distro.QEMU))
	}
	version, taken := qemu.ParseVersion(string(out))
	switch {
	case version == "":
		return hostPath, c.fail(fmt.Sprintf("%s does not say its version: %s", hostPath, firstLine(out)), distro.Install(distro.QEMU))
	case !taken:
		return hostPath, c.fail(fmt.Sprintf("%s is version %s, %s or later is needed", hostPath, version, qemu.MinVersion()), distro.Install(distro.QEMU))
	}
	c.Detail = fmt.Sprintf("version %s, %s", version, hostPath)
	return hostPath, c
}

// firstLine shortens the output of a program that is not QEMU.
func firstLine(out []byte) string {
	const most = 200
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line[:min(len(line), most)]
}

func kernel(s bootimage.Settings) (release string, _ Check) {
	c := Check{Name: "kernel", Status: OK}
	k, err := bootimage.Find(s)
	var none *bootimage.NotFoundError
	switch {
	case errors.As(err, &none):
		return "", c.fail("no kernel for guests: "+none.Why(), none.Advice())
	case err != nil:
		return "", c.fail(err.Error(), "correct kernel and modules in the settings file, or "+distro.Install(distro.Kernel))
	}
	c.Detail = fmt.Sprintf("%s (%s), %s", k.Release, k.Origin, k.Path)
	if k.ModulesDir != "" {
		c.Detail += ", modules in " + k.ModulesDir
	} else {
		c.Detail += ", without modules"
	}
	for _, p := range k.PassedOver {
		c.Detail += "; passed over " + p
	}
	return k.Release, c
}

func embeddedAgent() Check {
	c := Check{Name: "agent", Status: OK}
	b, err := bootimage.Agent()
	if err != nil {
		return c.fail(err.Error(), "build husk with make, or install a released husk")
	}
	const mib = 1 << 20
	c.Detail = fmt.Sprintf("in this husk, %.1f MiB", float64(len(b))/mib)
	return c
}

// channel checks how husk talks to the agent. Without vhost-vsock it is a little slower.
func channel(setting string) Check {
	c := Check{Name: "vhost-vsock", Status: OK}
	found, reason := qemu.ProbeVsock()
	switch {
	case setting == "off":
		c.Detail = "turned off in the settings file: virtio-serial is used"
	case found:
		c.Detail = reason
	case setting == "on":
		return c.fail(reason, "modprobe vhost_vsock, or set vsock to auto in the settings file")
	default:
		c.Detail = "not there, virtio-serial is used: " + reason
	}
	return c
}

var virtiofsdPaths = []string{"/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"}

func virtiofsd(hostPaths []string) Check {
	c := Check{Name: "virtiofsd", Status: OK, Detail: "not installed, and not needed: files are shared through virtio-9p"}
	for _, p := range hostPaths {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			c.Detail = p + ", not used yet: files are shared through virtio-9p"
			break
		}
	}
	return c
}
