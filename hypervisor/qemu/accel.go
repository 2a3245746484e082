package qemu

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
)

const (
	// kvmGetAPIVersion is KVM_GET_API_VERSION of linux/kvm.h. kvmAPIVersion is its result on
	// every Linux since 2.6.22.
	kvmGetAPIVersion = 0xAE00
	kvmAPIVersion    = 12
)

// host holds the paths that the probes look at. Tests use other paths.
type host struct {
	kvm        string
	vhostVsock string
	cpuinfo    string
	apiVersion func(*os.File) (int, error)
}

var thisHost = host{
	kvm:        "/dev/kvm",
	vhostVsock: "/dev/vhost-vsock",
	cpuinfo:    "/proc/cpuinfo",
	apiVersion: func(f *os.File) (int, error) { return unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion) },
}

// ProbeAccel resolves want to KVM or TCG, and returns the reason in words for a user.
//
// Auto becomes KVM only if /dev/kvm can be opened, answers with the KVM API version, and the
// processor has the flag vmx or svm. The flag is needed because on hosts that are paravirtual
// guests themselves /dev/kvm opens and makes VMs, which then hang without an error. If KVM is
// asked for by name the flag is not checked, because the user knows the host; an unusable
// /dev/kvm is an error then.
func ProbeAccel(want hypervisor.Accel) (accel hypervisor.Accel, reason string, err error) {
	return thisHost.probeAccel(want)
}

func (h host) probeAccel(want hypervisor.Accel) (hypervisor.Accel, string, error) {
	switch want {
	case hypervisor.TCG:
		return hypervisor.TCG, "configured", nil
	case hypervisor.KVM:
		if err := h.openKVM(); err != nil {
			return "", "", fmt.Errorf("accel %s: %w", hypervisor.KVM, err)
		}
		return hypervisor.KVM, "configured", nil
	case hypervisor.Auto, "":
	default:
		return "", "", fmt.Errorf("accel %q is none of %s, %s, %s", want, hypervisor.Auto, hypervisor.KVM, hypervisor.TCG)
	}

	if err := h.openKVM(); err != nil {
		//nolint:nilerr // no KVM is an answer here, not a failure.
		return hypervisor.TCG, err.Error(), nil
	}
	flag, err := h.virtFlag()
	if err != nil {
		return "", "", fmt.Errorf("probe accel: %w", err)
	}
	if flag == "" {
		return hypervisor.TCG, h.kvm + " opens, but the processor shows neither vmx nor svm, so it may not run a guest; " +
			"set accel to kvm if you know that it does", nil
	}
	return hypervisor.KVM, fmt.Sprintf("%s opens and the processor has %s", h.kvm, flag), nil
}

// openKVM returns an error in words for a user if /dev/kvm cannot be used.
func (h host) openKVM() error {
	f, err := os.OpenFile(h.kvm, os.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: enable virtualization in the firmware and load kvm_intel or kvm_amd", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run as root or as a member of group kvm", err)
	case err != nil:
		return fmt.Errorf("%w: load kvm_intel or kvm_amd", err)
	}
	// It was opened only for one ioctl.
	defer f.Close()
	v, err := h.apiVersion(f)
	if err != nil {
		return fmt.Errorf("ask %s for its api version: %w", h.kvm, err)
	}
	if v != kvmAPIVersion {
		return fmt.Errorf("%s has api version %d, not %d: it is not KVM as QEMU knows it", h.kvm, v, kvmAPIVersion)
	}
	return nil
}

// virtFlag returns "vmx" or "svm" if the first processor has that flag, else "".
func (h host) virtFlag() (string, error) {
	flags, err := h.cpuField("flags")
	if err != nil {
		return "", err
	}
	for _, f := range strings.Fields(flags) {
		if f == "vmx" || f == "svm" {
			return f, nil
		}
	}
	return "", nil
}

// tscKHz returns the rate of the host's time stamp counter, which an emulated guest sees
// unscaled, or 0 if it is unknown. On x86 BogoMIPS is twice that rate. "cpu MHz" would be
// wrong: it is the momentary clock, and a guest started while the host idles would have a clock
// that runs several times too fast.
func (h host) tscKHz() int {
	field, err := h.cpuField("bogomips")
	if err != nil {
		return 0
	}
	mips, err := strconv.ParseFloat(field, 64)
	if err != nil || mips < 200 || mips > 40000 { // below 100 MHz or above 20 GHz it is not a rate
		return 0
	}
	return int(mips * 1000 / 2)
}

// cpuField returns a field of the first processor in /proc/cpuinfo, "" if it has none. It reads
// no further than needed, because the kernel takes milliseconds to make the whole file on large
// machines.
func (h host) cpuField(name string) (value string, err error) {
	f, err := os.Open(h.cpuinfo)
	if err != nil {
		return "", fmt.Errorf("read processor flags: %w", err)
	}
	// It was opened only for reading.
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() && lines.Text() != "" {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read %s: %w", h.cpuinfo, err)
	}
	return "", nil
}

// ProbeVsock says whether the agent channel can use a vhost-vsock device. If not, reason says
// why in words for a user.
func ProbeVsock() (ok bool, reason string) { return thisHost.probeVsock() }

func (h host) probeVsock() (bool, string) {
	f, err := os.OpenFile(h.vhostVsock, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err.Error() + ": load module vhost_vsock to have it"
	}
	// It was opened only to see whether it can be.
	f.Close()
	return true, h.vhostVsock + " opens"
}
